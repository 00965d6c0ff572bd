"""What a run may leave on the machine when its command, its containerd or a shim was killed or hangs.

It is found in the kernel's own lists: nothing here asks containerd, which may be the one that does not answer.
Everything here blocks.
"""

import fcntl
import hashlib
import logging
import os
import posixpath
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moorage import errors
from moorage._lib.cgroups import thaw
from moorage.host.beneath import remove_directories
from moorage.host.process_identity import is_trusted

__all__ = (
    "end_processes",
    "has_shim_directory",
    "keeping_group",
    "remove_group",
    "remove_shim_directory",
    "remove_traces",
)

log = logging.getLogger(__name__)

_SHIM_SOCKETS = Path("/run/containerd/s")  # of every shim, whatever containerd's configuration says
_PROGRAMS = ("containerd", "runc", "crun")
_GROUP = "moorage"
_CGROUPS = "/sys/fs/cgroup"
_LOOK_AGAIN = 0.005  # seconds
_CREATION = 2.0  # seconds that a removal waits for the creation of a container by another engine


def end_processes(state: Path, id: str, by_itself: float, within: float) -> None:
    """Return when no containerd, shim or runtime works below ``state`` and nothing of the plugin ``id`` runs.

    They are given ``by_itself`` seconds to end, and killed then.

    Raises: Unavailable for a process that is still there ``within`` seconds after that.
    """
    begun = time.monotonic()
    told: set[int] = set()
    while found := sorted(_processes(state, id)):
        waited = time.monotonic() - begun - by_itself
        if waited > within:
            raise errors.Unavailable(f"cannot end process {found[0]} of the plugin: it is still there after SIGKILL")
        if waited > 0:
            if new := set(found) - told:
                log.info("killing %s", ", ".join(f"{pid} {_name(pid)}" for pid in sorted(new)))
                told |= new
            _kill(found, id)
        time.sleep(_LOOK_AGAIN)


def remove_traces(address: str, namespace: str, id: str) -> None:
    """Remove the plugin's control groups, the empty one above all plugins, and the socket that a killed shim leaves.

    Source: containerd runtime/v2/shim/util_unix.go, SocketAddress.
    """
    for directory in _groups(id):
        remove_directories(Path(directory))
    remove_group()
    digest = hashlib.sha256(posixpath.join(address, namespace, id).encode()).hexdigest()
    (_SHIM_SOCKETS / digest).unlink(missing_ok=True)


@contextmanager
def keeping_group() -> Iterator[None]:
    """No other engine removes the control group above all plugins until the block ends.

    A runtime makes the group of a container in two steps, and fails where the upper one is removed between them.
    """
    lock = _open_lock()
    try:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_SH)  # others hold it exclusively only for as long as a removal takes
        yield
    finally:
        if lock is not None:
            os.close(lock)


def remove_group() -> None:
    """Remove the control group above all plugins where it is empty, and no engine on this machine creates one in it."""
    lock = _open_lock()
    try:
        if lock is not None and not _lock_within(lock, _CREATION):
            return  # the engine that creates one removes it
        for mount_point in _hierarchies():
            _remove(os.path.join(mount_point, _GROUP))
    finally:
        if lock is not None:
            os.close(lock)


def _open_lock() -> int | None:
    """The directory of all control groups, which is the lock file, so that none is left behind."""
    try:
        return os.open(_CGROUPS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _lock_within(lock: int, within: float) -> bool:
    until = time.monotonic() + within
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_AGAIN)
        else:
            return True


def has_shim_directory() -> bool:
    """Whether there is a directory for the sockets of shims, which the first of all shims makes."""
    return _SHIM_SOCKETS.exists()


def remove_shim_directory() -> None:
    """Remove that directory, and the one above, where they are empty."""
    for directory in (_SHIM_SOCKETS, _SHIM_SOCKETS.parent):
        _remove(str(directory))


def _processes(state: Path, id: str) -> Iterator[int]:
    below, group = os.fsencode(state) + b"/", f"/{_GROUP}/{id}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            words = _read(entry, "cmdline").split(b"\0")
            # which directory one of root's tools works on, its words say; that it is one of root's, only the kernel
            is_ours = any(word.startswith(below) for word in words) and is_trusted(int(entry), _PROGRAMS)
            if (is_ours or (id and group in _read(entry, "cgroup"))) and not _is_zombie(entry):
                yield int(entry)


def _is_zombie(pid: str) -> bool:
    return _read(pid, "stat").rpartition(b") ")[2][:1] in (b"", b"Z", b"X")


def _name(pid: int) -> str:
    return _read(str(pid), "comm").decode(errors="replace").strip()


def _read(pid: str, name: str) -> bytes:
    try:
        return Path("/proc", pid, name).read_bytes()
    except OSError:
        return b""  # it ended just now


def _kill(pids: list[int], id: str) -> None:
    for directory in _groups(id):  # the runtime freezes a group to kill all in it, and may have been killed meanwhile
        thaw(Path(directory))
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _groups(id: str) -> list[str]:
    if not id:
        return []
    found = (os.path.join(mount_point, _GROUP, id) for mount_point in _hierarchies())
    return [directory for directory in found if os.path.isdir(directory)]


def _remove(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        pass  # not there, or somebody else lives in it


def _hierarchies() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        fields = [line.split(" ") for line in lines]
    return [each[4] for each in fields if each[each.index("-") + 1] in ("cgroup", "cgroup2")]
