"""What a process takes over from whoever starts it, and what is defined here in its place.

Linux passes much on from parent to child: umask, limits, priority, ignored signals. Without this module a plugin would
run differently depending on the shell, the unit or the cron job that the engine was started from. ``settle_process`` is
for our own process, ``start_program`` for the programs that run plugins, which pass it on to them. What a container has
of its own, such as its limits, is in its OCI runtime spec (docs/reference/oci-spec.md).

CPU affinity, control group, I/O priority and namespaces are left as they are: they are set for the whole engine.
"""

import logging
import os
import resource
import shutil
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from moorage.host.process_identity import lock_until_exit

__all__ = ("keep_new_files_private", "make_directory", "settle_process", "start_program")

log = logging.getLogger(__name__)

PRIVATE_UMASK = 0o077
"""Of our own process: nothing is for others unless its mode is given explicitly."""
PROGRAM_UMASK = 0o022
"""Of programs that run plugins: the root of a plugin, which containerd makes, must be readable by the plugin's user."""
OPEN_FILES = 1_048_576
"""Limit of open files of our process and of those programs, where the kernel allows as many."""
PROGRAM_OOM_SCORE_ADJ = -999
"""As containerd's own unit has it: a plugin goes first. The plugins' is in their specs."""

_UNLIMITED = (
    resource.RLIMIT_NPROC,
    resource.RLIMIT_CORE,
    resource.RLIMIT_FSIZE,  # under a small one containerd cannot make its database
    resource.RLIMIT_AS,
    resource.RLIMIT_DATA,
    resource.RLIMIT_CPU,  # ends a process that has worked for long enough
)
_ACL_VERSION = 2
_ACL_ENTRIES = ((0x01, 7), (0x04, 0), (0x20, 0))  # owner rwx, group nothing, others nothing
_NO_ID = 0xFFFFFFFF


def settle_process() -> None:
    """Give this process the umask and the limits that are defined here. What the kernel refuses stays as it was."""
    os.umask(PRIVATE_UMASK)
    most = _kernel_limit()
    for limit, wanted in ((resource.RLIMIT_NOFILE, most), *((each, resource.RLIM_INFINITY) for each in _UNLIMITED)):
        with suppress(OSError, ValueError):  # without CAP_SYS_RESOURCE only the soft limit can be raised
            resource.setrlimit(limit, (wanted, wanted))
            continue
        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(limit)
            resource.setrlimit(limit, (hard, hard))


def start_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: int,
    umask: int = PROGRAM_UMASK,
    lock: int | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own that outlives us, with defined umask, priority, signals and OOM score.

    ``output`` is the descriptor for its output; ``lock`` that of a file whose lock the program holds until it exits,
    its children do not. The caller reaps the process. Blocks for a moment.

    Raises: OSError where it cannot be started.
    """
    with _usual_thread():
        child = subprocess.Popen(
            [*_with_default_signals(), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=dict(environment),
            start_new_session=True,
            umask=umask,
            pass_fds=() if lock is None else (lock,),
            # one system call, which is safe beside other threads
            preexec_fn=None if lock is None else partial(lock_until_exit, lock),
        )
    for score in (PROGRAM_OOM_SCORE_ADJ, 0):  # below 0 only with CAP_SYS_RESOURCE
        with suppress(OSError):
            Path(f"/proc/{child.pid}/oom_score_adj").write_text(f"{score}\n")
            break
    return child


def make_directory(path: Path, mode: int) -> None:
    """Make a directory with this very mode, and those above it that are missing with 0755, whatever the umask is.

    One that is there keeps its mode, but for the right of others to write: what is put there could be replaced.

    Raises: OSError; PermissionError for one that belongs to another user.
    """
    if not path.parent.exists():
        make_directory(path.parent, 0o755)
    try:
        path.mkdir()
    except FileExistsError:
        found = path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(
                1, f"it belongs to user {found.st_uid}, who could replace what is in it", str(path)
            ) from None
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            log.warning("%s could be written to by other users (mode %o); now it cannot", path, found.st_mode & 0o7777)
            path.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
    else:
        path.chmod(mode)


def keep_new_files_private(directory: Path) -> None:
    """Have everything that any program creates below a directory from now on readable by its owner only.

    By a default access control list, which counts in place of the creator's umask. A file system without such lists is
    left as it is: the directory itself must be private, too. Source: acl(5), linux/posix_acl_xattr.h.
    """
    entries = b"".join(struct.pack("<HHI", tag, rights, _NO_ID) for tag, rights in _ACL_ENTRIES)
    with suppress(OSError):
        os.setxattr(directory, "system.posix_acl_default", struct.pack("<I", _ACL_VERSION) + entries)


def _kernel_limit() -> int:
    try:
        return min(OPEN_FILES, int(Path("/proc/sys/fs/nr_open").read_text()))
    except (OSError, ValueError):
        return OPEN_FILES


@contextmanager
def _usual_thread() -> Iterator[None]:
    """This thread with the usual priority, scheduling policy and no blocked signal: a child takes over its thread's."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with suppress(OSError):  # a better priority needs CAP_SYS_NICE
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with suppress(OSError):
            os.sched_setscheduler(0, policy, parameter)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, nice)


def _with_default_signals() -> list[str]:
    """What to put before a command where we were told to ignore signals (nohup does), lest a plugin ignores them."""
    handled_anyway = (signal.SIGPIPE, signal.SIGXFSZ)  # by subprocess
    ignored = [each for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN]
    program = shutil.which("env", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if program is None or not set(ignored) - set(handled_anyway):
        return []
    return [program, "--default-signal"]
