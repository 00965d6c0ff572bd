"""Processes that are not our children: identity, signals, waiting for their exit and its cause, their scheduling.

A process is identified by what the kernel reports of it and only root can arrange, never by its name or command line:
any user can start a process with the name of one of the engine's. Only root can lock a file of root's, listen on a
socket in a directory of root's, or run a program as root in the host's namespaces.
"""

import errno
import fcntl
import os
import re
import signal as signals
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from moorage.host import proc

__all__ = (
    "FORK_GUARD",
    "change_scheduling_policy",
    "die_with_parent",
    "find_listener",
    "find_lock_holder",
    "has_file_open",
    "has_users",
    "is_trusted",
    "kernel_messages",
    "lock_until_exit",
    "names_oom_kill",
    "open_process",
    "send_signal",
    "set_nice_value",
    "wait_for_exit",
)

_FLOCK = "hhlli4x"  # struct flock of fcntl(2): type, whence, start, length, pid
_PR_SET_PDEATHSIG = 1
_SHARED = ("mnt", "pid")  # namespaces that a plugin does not have
_KERNEL_LOG = Path("/dev/kmsg")
_KERNEL_RECORD_BYTES = 8192  # the kernel returns one record a read, and refuses a smaller buffer with EINVAL
_OOM_VICTIM = re.compile(r"^oom-kill:.*,task_memcg=(?P<group>.*?),task=.*,pid=(?P<pid>\d+),uid=\d+$")
_OOM_KILL = re.compile(r"Killed process (?P<pid>\d+) \(")
FORK_GUARD = threading.Lock()
"""Locked from opening a file that a child is to lock until the child runs its program, and while the owner of that lock
is queried: a second descriptor of the file in the child would release the lock when it is closed. Source: fcntl(2)."""


def lock_until_exit(descriptor: int) -> None:
    """Lock a file until this process exits, also when it executes another program; its children do not have the lock.

    For a child between fork and exec. Raises: OSError if another process has the lock.
    """
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def find_lock_holder(path: Path) -> int | None:
    """The process that has the lock of ``lock_until_exit`` on a file; None if no process has it.

    0 for one that is not visible in this pid namespace.
    """
    with FORK_GUARD:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            query = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
        finally:
            os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def find_listener(path: Path) -> int | None:
    """The process of our own user that listens on a unix socket; None if none does. Source: unix(7), SO_PEERCRED."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        if client.connect_ex(os.fspath(path)) != 0:
            return None
        pid, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid if uid == os.geteuid() and pid > 0 else None


def is_trusted(pid: int, programs: Sequence[str]) -> bool:
    """Whether a process is root's, in our namespaces, and runs a program whose file name begins with one of these."""
    if not has_users(pid, os.geteuid()):
        return False
    seen, own = ([proc.namespace(kind, each) for kind in _SHARED] for each in (pid, "self"))
    return all(seen) and seen == own and os.path.basename(proc.executable(pid)).startswith(tuple(programs))


def has_users(pid: int, uid: int) -> bool:
    """Whether this is a process's real, effective, saved and file system user; False for one that is gone."""
    return proc.user_ids(pid) == {uid}


def has_file_open(pid: int, path: Path) -> bool:
    """Whether a process has this file open, which for a file of root's only root's can."""
    try:
        file = os.stat(path)
    except OSError:
        return False
    for descriptor in proc.descriptors(pid):
        with suppress(OSError):
            if os.path.samestat(os.stat(descriptor), file):
                return True
    return False


def open_process(pid: int) -> int | None:
    """A descriptor of a process, which the caller closes; None if there is none with this pid.

    A process that was reaped may leave its pid as that of a process group or session. pidfd_open(2) refuses it with
    EINVAL then, where later kernels say ESRCH.

    Raises: OSError if ``pid`` is not positive, or the kernel refuses a descriptor (too many are open).
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ESRCH or (error.errno == errno.EINVAL and pid > 0):
            return None
        raise


def send_signal(pid: int, number: int, is_intended: Callable[[int], bool]) -> bool:
    """Send a signal to a process, if it is still the intended one: its pid may be reused. Whether it was sent."""
    descriptor = open_process(pid)
    if descriptor is None:
        return False
    try:
        if not is_intended(pid):
            return False
        signals.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent exits; it exits here if that has happened already.

    Source: PR_SET_PDEATHSIG(2const).
    """
    import ctypes  # only here: nothing else needs it

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signals.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


async def wait_for_exit(pid: int) -> None:
    """Return when the process with this pid has exited, at once if there is none.

    Within a millisecond of the exit and without polling. If the pid was reused, this waits for the wrong process: the
    return is a reason to check, never a proof.

    Raises: OSError if the kernel refuses a descriptor (too many are open).
    """
    import anyio  # only here: the plugin proxy does without

    descriptor = open_process(pid)
    if descriptor is None:
        return
    try:
        await anyio.wait_readable(descriptor)
    finally:
        os.close(descriptor)


def kernel_messages() -> Iterator[str]:
    """The messages in the kernel's log, oldest first (blocking); none where this process may not read it.

    Source: dev-kmsg of the kernel's ABI documentation.
    """
    try:
        log = os.open(_KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while True:
            try:
                record = os.read(log, _KERNEL_RECORD_BYTES)
            except BrokenPipeError:  # overwritten before it was read; the next read returns the next one
                continue
            except OSError:  # there are no more, or this process may not read them
                return
            yield record.decode(errors="replace").partition(";")[2].partition("\n")[0]
    finally:
        os.close(log)


def names_oom_kill(messages: Iterable[str], pid: int, group: str) -> bool:
    """Whether the kernel says that it killed this process of this control group because memory was missing.

    The line with the control group may be missing: the kernel limits how often it prints that, but not the kill itself.
    The pid is one of the initial pid namespace. The last one counts, since a pid may be reused.

    Source: ``dump_oom_summary`` and ``__oom_kill_process`` of the kernel's mm/oom_kill.c.
    """
    killed, in_group = False, True
    for message in messages:
        if (victim := _OOM_VICTIM.search(message)) and int(victim["pid"]) == pid:
            in_group = f"{group}/" in f"{victim['group']}/"
        elif (kill := _OOM_KILL.search(message)) and int(kill["pid"]) == pid:
            killed, in_group = in_group, True
    return killed


def set_nice_value(pid: int, nice: int) -> None:
    """Set the nice value of all threads of a process (blocking). One that is gone is fine.

    Raises: PermissionError for another user's process, or for a lower value without CAP_SYS_NICE.
    """
    _for_each_thread(pid, lambda thread: os.setpriority(os.PRIO_PROCESS, thread, nice))


def change_scheduling_policy(pid: int, before: int, after: int) -> None:
    """Give the threads of a process that have one scheduling policy another (blocking). One that is gone is fine.

    With SCHED_BATCH a thread gets as much time, but waits for its turn when it wakes up.

    Raises: PermissionError for another user's process.
    """

    def change(thread: int) -> None:
        if os.sched_getscheduler(thread) == before:
            os.sched_setscheduler(thread, after, os.sched_param(0))

    _for_each_thread(pid, change)


def _for_each_thread(pid: int, call: Callable[[int], None]) -> None:
    seen: set[int] = set()
    while new := proc.thread_ids(pid) - seen:  # a thread inherits from the one that starts it
        seen |= new
        for thread in new:
            with suppress(ProcessLookupError):
                call(thread)
