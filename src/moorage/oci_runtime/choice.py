"""Which OCI runtime an engine or a foreground run uses. Everything here blocks.

``auto`` is crun where it is installed and a trial (``oci_runtime.trial``) shows that it can run plugins on this
machine, and runc otherwise. Each container's record in containerd names the runtime that it was created with, and that
one is used for it as long as it exists. Source: docs/adr/0043-which-runtime-runs-plugins.md.
"""

import json
import logging
import os
import re
import subprocess
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage.containerd.supervisor import find_binary
from moorage.containerd.types import RuntimeOptions
from moorage.host import proc
from moorage.host.files import write_atomically
from moorage.host.process_environment import clean_environment
from moorage.oci_runtime.trial import TRIAL_RECORD, find_obstacle
from moorage.timeouts import DEFAULT

__all__ = (
    "AUTO",
    "DEFAULT_COMMAND",
    "OciRuntime",
    "check_runtime_name",
    "choose_runtime",
    "find_installed",
    "find_known_fault",
    "find_runtime",
)

log = logging.getLogger(__name__)

AUTO = "auto"
DEFAULT_COMMAND = "runc"
"""Runs plugins where nothing else is chosen."""

PREFERRED_COMMAND = "crun"
_NAMES = (DEFAULT_COMMAND, PREFERRED_COMMAND)
_CRUN_VERSION = re.compile(r"crun version (\d+)\.(\d+)(?:\.(\d+))?")
_STATE = "runtime-root"
_VERSION_SECONDS = DEFAULT.runtime_trial


class OciRuntime(Struct, frozen=True):
    """A runtime for containers that are created from now on."""

    command: str = DEFAULT_COMMAND
    """``runc``, ``crun`` or an absolute path: what containerd's shim is given.

    A name, where it is known, because running shims keep it: a package may be replaced by one with another directory.
    """
    version: str = ""
    """The first line of its --version; empty where it is unknown."""
    reason: str = ""
    """Why this one, as text for an operator."""

    def options(self, exec_root: Path, *, systemd_cgroup: bool = False) -> RuntimeOptions:
        """The options of each container below this run-time directory; nothing else chooses them.

        With ``systemd_cgroup``, systemd creates their control groups.
        """
        return RuntimeOptions(root=str(exec_root / _STATE), binary_name=self.command, systemd_cgroup=systemd_cgroup)


def check_runtime_name(requested: str) -> None:
    """Raises: Invalid for what is neither auto, runc, crun nor an absolute path."""
    if requested != AUTO and requested not in _NAMES and not os.path.isabs(requested):
        raise errors.Invalid(
            f"cannot use runtime {requested!r}: it must be {AUTO}, {', '.join(_NAMES)} or an absolute path"
        )


def choose_runtime(requested: str, exec_root: Path, id: str = "", *, systemd_cgroup: bool = False) -> OciRuntime:
    """The runtime for containers below this run-time directory that are created from now on.

    A trial uses a directory in ``exec_root``, and the control group of the plugin ``id``, which does not run yet, or
    one of its own.

    Raises:
        errors.Invalid: ``requested`` is no runtime
        errors.Unsupported: it is not on this machine
    """
    check_runtime_name(requested)
    if requested != AUTO:
        return find_runtime(requested, "as requested")
    preferred, default = _find(PREFERRED_COMMAND), _find(DEFAULT_COMMAND)
    if preferred is None:
        return find_runtime(DEFAULT_COMMAND, f"{PREFERRED_COMMAND} is not installed")
    options = preferred.options(exec_root, systemd_cgroup=systemd_cgroup)
    obstacle = find_known_fault(preferred.version, options)
    if not obstacle:
        record = exec_root / TRIAL_RECORD
        key = [proc.boot_id(), options.systemd_cgroup, *map(_identity, (preferred, default))]
        if (recorded := _read(record, key)) is None:
            obstacle = find_obstacle(preferred.command, options, exec_root, DEFAULT_COMMAND, id)
            write_atomically(record, json.dumps([key, obstacle]).encode())
        else:
            obstacle = recorded
    if not obstacle:
        return replace(preferred, reason=f"{PREFERRED_COMMAND} is installed and runs plugins here")
    log.info("plugins are not run by %s: %s", preferred.version, obstacle)
    if default is None:
        raise errors.Unsupported(
            f"cannot run containers: there is no {DEFAULT_COMMAND} on this machine, and {preferred.version} cannot run "
            f"plugins here ({obstacle}); install it (Debian: apt install {DEFAULT_COMMAND})"
        )
    return replace(default, reason=f"{preferred.version} cannot run plugins here: {obstacle}")


def _identity(runtime: OciRuntime | None) -> list[object]:
    """What changes with a program of this name; empty where there is none."""
    if runtime is None:
        return []
    path = find_binary(runtime.command)
    status = os.stat(path)
    return [path, runtime.version, status.st_ino, status.st_size, status.st_mtime_ns]


def _read(record: Path, key: list[object]) -> str | None:
    """The obstacle that an earlier trial with these programs found since the boot; None for no such trial."""
    try:
        recorded_key, obstacle = json.loads(record.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return str(obstacle) if recorded_key == key else None


def find_installed() -> list[str]:
    """The names of the known runtimes that are installed. Raises: Unsupported where none is."""
    found = [name for name in _NAMES if _find(name) is not None]
    if not found:
        find_runtime(DEFAULT_COMMAND, "")
    return found


def _find(command: str) -> OciRuntime | None:
    try:
        return find_runtime(command, "")
    except errors.Unsupported:
        return None


def find_known_fault(version: str, options: RuntimeOptions) -> str:
    """A fault of this version of crun that a trial does not show; empty where none is known.

    ``version`` is the first line of its --version. Source: crun's NEWS for 1.9 and 1.29.1.
    """
    found = _CRUN_VERSION.match(version)
    number = tuple(int(each or 0) for each in found.groups()) if found else None
    if number == (1, 29, 0):
        return "crun 1.29 gives mounts wrong modes (fixed in 1.29.1)"
    if number is not None and number < (1, 9, 0) and options.systemd_cgroup:
        return "crun before 1.9 leaves the unit of a plugin that was OOM-killed, which prevents its next start"
    return ""


def find_runtime(command: str, reason: str) -> OciRuntime:
    """A runtime that is installed, with its version. Raises: Unsupported where it is not, or cannot be executed."""
    path = command if os.path.isabs(command) else find_binary(command)
    try:
        done = subprocess.run(
            [path, "--root", "/", "--version"],  # without a root crun makes /run/crun
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        text = error.strerror if isinstance(error, OSError) else f"{path} --version does not end"
        raise errors.Unsupported(f"cannot use runtime {path}: {text}") from error
    return OciRuntime(command, done.stdout.partition("\n")[0].strip(), reason)
