"""Scopes of systemd for programs that outlive the engine: units of their own beside its service, in ``SLICE``.

Without one, such a program belongs to the unit that the engine was started in: systemd warns of it at each start of
that unit, and ``systemctl kill`` signals it. ``systemd-run --scope`` requests the scope for its own process and then
executes the program, whose pid is known from the beginning. Where that fails, the program runs without a scope.

Source: systemd-run(1), systemd.scope(5), sd_booted(3).
"""

import logging
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from moorage.host import proc
from moorage.host.files import last_line
from moorage.timeouts import DEFAULT

__all__ = (
    "SLICE",
    "SystemdScope",
    "containerd_scope",
    "is_process_1",
    "make_scope",
    "scope_group",
    "start_daemon",
    "start_program",
)

log = logging.getLogger(__name__)

SLICE = "moorage.slice"
"""The slice of plugins and of what runs them, of every engine on this machine."""

_BOOTED = Path("/run/systemd/system")
_SYSTEM_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROPERTIES = (
    "Delegate=yes",  # from systemd 253 on also: one process that is OOM-killed does not end the others
    "DefaultDependencies=no",  # at a shutdown `moorage down` ends them, after the plugins
    "TasksMax=infinity",
)
_WITHIN = DEFAULT.systemd_scope
_POLL = 0.005  # seconds


class SystemdScope(Struct, frozen=True):
    """A scope to be created: a name that is never used twice, and the command that creates it and runs a program."""

    unit: str
    command: tuple[str, ...]


def is_process_1() -> bool:
    """Whether systemd is process 1 of this machine."""
    return _BOOTED.is_dir()


def scope_group(name: str) -> str:
    """The path of a scope in every hierarchy, from a runtime's name of it (``slice:prefix:name``); else empty.

    Source: opencontainers/runc libcontainer/cgroups/systemd, getUnitName and ExpandSlice; crun has the same.
    """
    parts = name.split(":")
    if len(parts) != 3 or "/" in name or ".." in parts:
        return ""
    slice, prefix, unit = parts
    stem = (slice or "system.slice").removesuffix(".slice")
    levels = [] if stem == "-" else stem.split("-")
    if not unit or "" in levels or not (slice or "system.slice").endswith(".slice"):
        return ""
    if not unit.endswith(".slice"):
        unit = f"{prefix}-{unit}.scope" if prefix else f"{unit}.scope"
    above = (f"{'-'.join(levels[: end + 1])}.slice" for end in range(len(levels)))
    return "/" + "/".join((*above, unit))


def containerd_scope(root: Path) -> str:
    """What the scope of the private containerd of this data directory is for, as ``systemctl status`` shows it."""
    return f"Moorage, containerd and shims of {root}"


def make_scope(program: str, description: str) -> SystemdScope | None:
    """A scope for a program ("containerd"); None where systemd is not process 1.

    Its name is random: an earlier scope of the same engine may have shims in it that outlived their containerd.
    """
    if not is_process_1():
        return None
    unit = f"moorage-{program}-{secrets.token_hex(4)}.scope"
    runner = shutil.which("systemd-run", path=_SYSTEM_PATHS)
    if runner is None:
        _warn(unit, "there is no systemd-run")
        return None
    options = ("--scope", "--quiet", "--collect", f"--slice={SLICE}", f"--unit={unit}", f"--description={description}")
    return SystemdScope(unit, (runner, *options, *(f"--property={each}" for each in _PROPERTIES), "--"))


def start_program(
    command: Sequence[str],
    scope: SystemdScope | None,
    spawn: Callable[[Sequence[str]], "subprocess.Popen[bytes]"],
    output: Path,
) -> "subprocess.Popen[bytes]":
    """Start a program in a scope, or without one where systemd does not create it (blocking).

    ``spawn`` starts a command that writes to the file ``output``; the process that is returned runs ``command``.

    Raises: what ``spawn`` raises.
    """
    if scope is not None:
        written = _size(output)
        child = spawn([*scope.command, *command])
        problem = _await_scope(child, scope.unit)
        if not problem:
            return child
        _warn(scope.unit, last_line(output, written) or problem)
    return spawn(command)


def start_daemon(
    command: Sequence[str], scope: SystemdScope | None, run: Callable[[Sequence[str], float | None], int], output: Path
) -> int:
    """Run a program that goes into the background by itself, in a scope or without one; its exit status (blocking).

    ``run`` returns the exit status of a command that writes to the file ``output``, and raises TimeoutExpired after the
    given seconds.
    """
    if scope is not None:
        try:
            status = run([*scope.command, *command], _WITHIN)
        except subprocess.TimeoutExpired:
            status, problem = 1, _no_answer()
        else:
            problem = last_line(output) or f"systemd-run exited with status {status}"
        if status == 0:
            return 0
        _warn(scope.unit, problem)
    return run(command, None)


def _await_scope(child: "subprocess.Popen[bytes]", unit: str) -> str:
    """Wait until a process is in a scope, where it executes its program; why it is not, and then it has exited."""
    deadline = time.monotonic() + _WITHIN
    while child.poll() is None:
        if any(path.endswith(f"/{unit}") for path in proc.cgroup_memberships(child.pid).values()):
            return ""
        if time.monotonic() > deadline:
            child.kill()
            child.wait()
            return _no_answer()
        time.sleep(_POLL)
    return f"systemd-run exited with status {child.returncode}"


def _no_answer() -> str:
    return f"systemd did not create it within {_WITHIN:g} s"


def _warn(unit: str, problem: str) -> None:
    log.warning(
        "cannot create %s (%s); the program runs in the control group of this engine, and systemd counts it as a part "
        "of that unit",
        unit,
        problem,
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
