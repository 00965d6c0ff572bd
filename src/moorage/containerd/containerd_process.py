"""The process of a private containerd: its configuration, version, environment, lock, and the logs that it appends to.

containerd and its runtime append to logs without bound; each is truncated when it has grown (case 220). Both are opened
for appending, so that what is written after the truncation begins at the new end. Everything but ``keep_log_bounded``
blocks.
"""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.host import proc
from moorage.host.directory_tree import remove_tree_now
from moorage.host.process_environment import start_program
from moorage.host.processes import FORK_GUARD
from moorage.timeouts import DEFAULT

__all__ = (
    "LOG_LIMIT",
    "RUNTIME_LOG_LIMIT",
    "check_machine",
    "configuration",
    "configuration_version",
    "find_binary",
    "installed_version",
    "keep_log_bounded",
    "remove_cut_off_deletions",
    "search_path",
    "spawn_locked",
    "truncate_log",
    "truncate_runtime_log",
    "version_numbers",
)

log = logging.getLogger(__name__)

_SYSTEM_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_REQUIRED = {
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
}
_VERSION_LIMIT = DEFAULT.program_version

# Plugins of containerd that an engine does not use and that only cost start-up time, by their names in 1.x and 2.x; a
# version ignores names that it does not know. The old linux runtime stays in: without it 1.6 serves no tasks at all.
_CONFIG = """\
version = {version}
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.grpc.v1.sandbox-controllers",
  "io.containerd.grpc.v1.sandboxes",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.restart",
  "io.containerd.monitor.container.v1.restart",
  "io.containerd.nri.v1.nri",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.sandbox.controller.v1.local",
  "io.containerd.sandbox.controller.v1.shim",
  "io.containerd.sandbox.store.v1.local",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

{sockets}
[debug]
  level = "warn"

[timeouts]
  # A shim that is slow to answer when containerd starts again is killed with its container after this time.
  "io.containerd.timeout.shim.load" = "60s"
"""

_SOCKETS = """\
[grpc]
  address = {address}
"""

_SOCKETS_OF_4 = """\
[plugins."io.containerd.server.v1.grpc"]
  address = {address}

[plugins."io.containerd.server.v1.ttrpc"]
  address = {ttrpc_address}
"""

_FIRST_WITH = {(2, 3): 4, (2, 0): 3}
"""The first version of containerd with each newer version of the configuration. Source: its ``ConfigVersion``."""

_OLDEST = 2
"""The version of the configuration that all versions of containerd from 1.3 on understand."""

_VERSION = re.compile(r"v?(\d+)\.(\d+)")


def search_path() -> str:
    """The directories of commands: those of PATH, then those of the system."""
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}"


def find_binary(name: str, search: str | None = None) -> str:
    """The absolute path of a command: in PATH or a system directory, or only in the paths of ``search``.

    Raises:
        errors.Unsupported: it is missing; the text names the package to install
    """
    found = shutil.which(name, path=search or search_path())
    if found is None:
        package = _REQUIRED.get(name, name)
        raise errors.Unsupported(
            f"cannot run containers: there is no {name} on this machine; install it (Debian: apt install {package})"
        )
    return found


def check_machine(search: str | None = None) -> None:
    """Return if all commands are installed that each runtime needs.

    Raises:
        errors.Unsupported: one is missing; the text names the package to install
    """
    for name in _REQUIRED:
        find_binary(name, search)


def configuration(root: Path, state: Path, address: str, version: int = _OLDEST) -> str:
    """The text of containerd's configuration file for these directories and this socket, in this version of it."""
    sockets = _SOCKETS if version < 4 else _SOCKETS_OF_4
    return _CONFIG.format(
        version=version,
        root=_toml(root),
        state=_toml(state),
        sockets=sockets.format(address=_toml(address), ttrpc_address=_toml(f"{address}.ttrpc")),
    )


def configuration_version(binary: str) -> int:
    """The newest version of the configuration that this containerd understands without a warning (blocking).

    Where its version cannot be read, the one that all understand.
    """
    own = version_numbers(installed_version(binary))
    return max((version for first, version in _FIRST_WITH.items() if own >= first), default=_OLDEST)


def installed_version(binary: str) -> str:
    """The version that this program of containerd prints, as 1.6.20 or v2.3.4; empty if there is none (blocking)."""
    try:
        shown = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_VERSION_LIMIT, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.info("cannot read the version of %s: %s", binary, error)
        return ""
    words = shown.stdout.split()  # its name, its package, its version, its revision
    return words[2] if len(words) > 2 else ""


def version_numbers(version: str) -> tuple[int, int]:
    """Major and minor number of a version of containerd; (0, 0) for a text that is none."""
    found = _VERSION.match(version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _toml(value: Path | str) -> str:
    """A TOML basic string."""
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def remove_cut_off_deletions(root: Path, state: Path) -> None:
    """Remove what a containerd that was killed in a deletion has left of tasks, before the next one starts.

    It renames the directory of a task to a hidden one, removes that, and never reads hidden ones again: those of an id
    that is used once would stay. What cannot be removed is logged. Source: ``atomicDelete`` of containerd's runtime.
    """
    for hidden in (each for base in (root, state) for each in base.glob("io.containerd.runtime.v2.task/*/.*")):
        try:
            remove_tree_now(hidden)
        except OSError as error:
            log.warning("cannot remove %s, which a killed containerd has left: %s", hidden, error)


def spawn_locked(
    command: Sequence[str], lock: Path, output: int, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, holding the lock of this file (blocking).

    The kernel reports which process holds the lock, so the program is known from the first instant, even if its
    starter is killed. Children of the program do not inherit the lock.

    Raises:
        OSError: it cannot be started, or another process holds the lock
    """
    with FORK_GUARD:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            return start_program(command, environment=environment, output=output, lock=descriptor)
        except subprocess.SubprocessError as error:
            raise OSError(f"another process holds the lock of {lock}") from error
        finally:
            os.close(descriptor)


# -------------------------------------------------------------------------------------------------------------- logs


LOG_LIMIT = 10 * 1024 * 1024
"""Bytes of containerd's log before it is truncated; one previous log is stored beside it."""
RUNTIME_LOG_LIMIT = 16 * 1024
"""Bytes of the runtime's log of one container: about a hundred failures of ``exec``, of which the last is read."""

_CHECK_INTERVAL = 60.0  # seconds between two checks
_TASKS = "io.containerd.runtime.v2.task"


async def keep_log_bounded(path: Path) -> None:
    """Truncate the log of a running containerd whenever it has grown, until cancelled."""
    while True:
        await anyio.sleep(_CHECK_INTERVAL)
        try:
            await run_blocking(lambda: truncate_log(path))
        except OSError as error:
            log.warning("cannot truncate %s: %s", path, error)


def truncate_log(path: Path) -> None:
    """Truncate a log that has more than LOG_LIMIT bytes, and store those in ``<path>.1``.

    Raises:
        OSError: the log cannot be read or written
    """
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)


def truncate_runtime_log(pid: int, container: str) -> None:
    """Truncate the runtime's log of a container whose first process is ``pid``, if it has grown.

    The shim, the parent of that process, has the directory of a task as its working directory, and the directories of
    all other tasks are beside it. A missing log is ignored.
    """
    try:
        stat = proc.process_stat(pid)
        directory = proc.working_directory(stat.parent) if stat is not None else None
        if directory is None or _TASKS not in directory.parts:
            return
        path = directory.with_name(container) / "log.json"
        if path.stat().st_size > RUNTIME_LOG_LIMIT:
            os.truncate(path, 0)
    except (OSError, ValueError) as error:
        log.debug("cannot check the log of the runtime of %s: %s", container, error)
