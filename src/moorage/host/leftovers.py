"""Processes, control groups and sockets that a run leaves behind when its command, its containerd or a shim is killed.

They are found in the kernel's own lists: nothing here calls containerd, which may be what does not respond. Everything
here blocks.
"""

import hashlib
import logging
import os
import posixpath
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from moorage import errors
from moorage.host import proc
from moorage.host.cgroups import find_groups, is_member, remove_groups, remove_parent_group, thaw
from moorage.host.processes import is_trusted

__all__ = ("end_processes", "has_shim_directory", "remove_leftovers", "remove_shim_directory")

log = logging.getLogger(__name__)

_SHIM_SOCKETS = Path("/run/containerd/s")  # of every shim, whatever containerd's configuration says
_PROGRAMS = ("containerd", "runc", "crun")
_POLL = 0.005  # seconds


def end_processes(state: Path, group: str, grace: float, within: float) -> None:
    """Return when no containerd, shim or runtime works below ``state`` and no process runs in a plugin's control group.

    ``group`` is its path in every hierarchy; empty for none. They have ``grace`` seconds to exit by themselves, and
    are killed then.

    Raises: Unavailable for a process that still runs ``within`` seconds after that.
    """
    started = time.monotonic()
    logged: set[int] = set()
    while found := sorted(_processes(state, group)):
        waited = time.monotonic() - started - grace
        if waited > within:
            raise errors.Unavailable(f"cannot end process {found[0]} of the plugin: it still runs after SIGKILL")
        if waited > 0:
            if new := set(found) - logged:
                log.info("killing %s", ", ".join(f"{pid} {proc.command_name(pid)}" for pid in sorted(new)))
                logged |= new
            _kill(found, group)
        time.sleep(_POLL)


def remove_leftovers(address: str, namespace: str, container: str, group: str) -> None:
    """Remove the plugin's control groups, the empty one above all plugins, and the socket that a killed shim leaves.

    ``address`` is the socket of the containerd that started the shim, ``group`` the path of the control group. May be
    repeated.

    Source: containerd runtime/v2/shim/util_unix.go, SocketAddress.
    """
    remove_groups(_groups(group))
    remove_parent_group()
    digest = hashlib.sha256(posixpath.join(address, namespace, container).encode()).hexdigest()
    (_SHIM_SOCKETS / digest).unlink(missing_ok=True)


def has_shim_directory() -> bool:
    """Whether the directory for the sockets of shims exists, which the first of all shims creates."""
    return _SHIM_SOCKETS.exists()


def remove_shim_directory() -> None:
    """Remove the directory for the sockets of shims, and the one above, if they are empty."""
    for directory in (_SHIM_SOCKETS, _SHIM_SOCKETS.parent):
        with suppress(OSError):  # it does not exist, or is in use
            directory.rmdir()


def _processes(state: Path, group: str) -> Iterator[int]:
    below = f"{state}/"
    for pid in proc.pids():
        # which directory one of root's tools works on, its arguments say; that it is one of root's, only the kernel
        is_tool = any(word.startswith(below) for word in proc.command_line(pid)) and is_trusted(pid, _PROGRAMS)
        if is_tool or (group and is_member(pid, group)):
            stat = proc.process_stat(pid)
            if stat is not None and not stat.has_exited:
                yield pid


def _kill(pids: list[int], group: str) -> None:
    for directory in _groups(
        group
    ):  # the runtime freezes a group to kill all in it, and may have been killed meanwhile
        thaw(directory)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _groups(group: str) -> list[Path]:
    found = set(find_groups(group).values()) if group else ()
    return [directory for directory in found if directory.is_dir()]
