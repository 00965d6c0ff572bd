"""Which process is ours: by what the kernel says of it and only root can arrange, never by its name or command line.

Any user may start a process that is called as one of ours is. Only root can hold a lock on a file of root's, listen on
a socket in a directory of root's, or run a program as root in the host's namespaces.
"""

import fcntl
import os
import signal as signals
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = (
    "FORK_GUARD",
    "boot_id",
    "find_listener",
    "find_lock_holder",
    "has_open",
    "has_users",
    "is_trusted",
    "lock_until_exit",
    "mount_namespace",
    "send_signal",
)

_FLOCK = "hhlli4x"  # struct flock of fcntl(2): type, whence, start, length, pid
_SHARED = ("mnt", "pid")  # namespaces; a plugin's are others
FORK_GUARD = threading.Lock()
"""Held from opening a file that a child is to lock until the child runs its program, and while its holder is asked for:
a second descriptor of it in the child would drop the lock when it is closed. Source: fcntl(2)."""


def lock_until_exit(descriptor: int) -> None:
    """Lock a file for as long as this process lives, also when it runs another program; its children do not have it.

    For a child between fork and exec. Raises: OSError where another process has the lock.
    """
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def find_lock_holder(path: Path) -> int | None:
    """The process that holds the lock of ``lock_until_exit`` on a file; None where no process does.

    0 for one that is not visible in this pid namespace.
    """
    with FORK_GUARD:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
        finally:
            os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def find_listener(path: Path) -> int | None:
    """The process of our own user that listens on a unix socket; None where none does. Source: unix(7), SO_PEERCRED."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        if client.connect_ex(os.fspath(path)) != 0:
            return None
        pid, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid if uid == os.geteuid() and pid > 0 else None


def is_trusted(pid: int, programs: Sequence[str]) -> bool:
    """Whether a process is root's, in our namespaces, and runs a program whose file name begins with one of these."""
    try:
        if not has_users(pid, os.geteuid()):
            return False
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
        here = all(os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}") for kind in _SHARED)
    except OSError:
        return False
    return here and program.startswith(tuple(programs))


def has_users(pid: int, uid: int) -> bool:
    """Whether this is a process's real, effective, saved and file system user; False for one that is gone.

    The owner of /proc/PID says less: it is root for every process that is not dumpable.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().splitlines()
    except OSError:
        return False
    return any(line.startswith(b"Uid:") and {int(each) for each in line.split()[1:]} == {uid} for line in lines)


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has this file open, which for a file of root's only root's can."""
    try:
        wanted = os.stat(path)
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for entry in entries:
        with suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{entry}"), wanted):
                return True
    return False


def send_signal(pid: int, number: int, is_still_ours: Callable[[int], bool]) -> bool:
    """Send a signal to a process, if it is still the one that is meant: the pid may be another's by now."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_still_ours(pid):
            return False
        signals.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def mount_namespace(pid: int | str = "self") -> str:
    """The mount namespace of a process, "" where that cannot be read."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""


def boot_id() -> str:
    """What tells this run of the kernel from others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
