"""What a process inherits from its parent, and the values that are defined here instead.

A process inherits umask, limits, priority and ignored signals. Without this module a plugin would run differently
depending on the shell, the unit or the cron job that started the engine. ``set_process_defaults`` is for our own
process, ``start_program`` for the programs that run plugins, which inherit it in turn. What a container has of its own,
such as its limits, is in its OCI runtime spec (docs/reference/oci-spec.md).

CPU affinity, control group, I/O priority and namespaces are inherited: they are set for the whole engine.
"""

import logging
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from moorage.host import proc
from moorage.host.processes import lock_until_exit

__all__ = ("clean_environment", "set_process_defaults", "start_program")

log = logging.getLogger(__name__)

PRIVATE_UMASK = 0o077
"""Of the engine itself: nothing is readable by others unless its mode is given explicitly."""
PROGRAM_UMASK = 0o022
"""Of programs that run plugins: a plugin's root, which containerd creates, must be readable by the plugin's user."""
OPEN_FILES = 1_048_576
"""Limit of open files of our process and of those programs, where the kernel allows as many."""
_ENOUGH_FILES = 16_384
"""A hard limit of open files below this is worth a warning: an engine with a few hundred plugins would reach it."""
PROGRAM_OOM_SCORE_ADJ = -999
"""As in containerd's own unit: a plugin is killed first. The plugins' score is in their specs."""

_UNLIMITED = {
    resource.RLIMIT_NPROC: "processes (ulimit -u, LimitNPROC=)",
    resource.RLIMIT_CORE: "core files (ulimit -c, LimitCORE=)",
    resource.RLIMIT_FSIZE: "file size (ulimit -f, LimitFSIZE=)",  # a small one prevents containerd's database
    resource.RLIMIT_AS: "memory (ulimit -v, LimitAS=)",
    resource.RLIMIT_DATA: "data segments (ulimit -d, LimitDATA=)",
    resource.RLIMIT_CPU: "processor time (ulimit -t, LimitCPU=)",  # kills a process that has used that much
}
_PRIVATE_VARIABLES = (
    "LISTEN_", "NOTIFY_", "WATCHDOG_", "PYTHON", "VIRTUAL_ENV", "DBUS_SESSION_BUS_", "XDG_RUNTIME_DIR",
)  # fmt: skip
_OPEN_FILES_NAME = "open files (ulimit -n, LimitNOFILE=)"


def clean_environment() -> dict[str, str]:
    """Our environment for a program that runs plugins, without what was set for this process or this login only.

    A service manager's notify socket and listen fds are not for a process that outlives us, nor is the bus of a login:
    crun (1.8 for one) would have the systemd of that user, also of root, create a plugin's scope, which ends at the
    logout.

    Source: sd_listen_fds(3), sd_notify(3); crun's src/libcrun/cgroup-systemd.c, ``open_sd_bus_connection``.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE_VARIABLES)}


def set_process_defaults() -> None:
    """Set umask and limits of this process to the values defined here. What the kernel refuses is unchanged.

    Hard limits that cannot be raised are logged as one warning, because plugins and containerd inherit them.
    """
    os.umask(PRIVATE_UMASK)
    most = _kernel_limit()
    low = []
    for limit, value in ((resource.RLIMIT_NOFILE, most), *((each, resource.RLIM_INFINITY) for each in _UNLIMITED)):
        with suppress(OSError, ValueError):  # without CAP_SYS_RESOURCE only the soft limit can be raised
            resource.setrlimit(limit, (value, value))
            continue
        with suppress(OSError, ValueError):
            _, hard = resource.getrlimit(limit)
            enough = {resource.RLIMIT_NPROC: _usual_processes(), resource.RLIMIT_NOFILE: _ENOUGH_FILES}
            if limit not in enough or hard < enough[limit]:
                low.append(f"{_UNLIMITED.get(limit, _OPEN_FILES_NAME)} at most {hard}")
            resource.setrlimit(limit, (hard, hard))
    if low:
        log.warning(
            "cannot raise hard limits without CAP_SYS_RESOURCE, plugins and containerd inherit them: %s; "
            "raise them where the engine is started",
            ", ".join(low),
        )


def start_program(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: int,
    umask: int = PROGRAM_UMASK,
    lock: int | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own that outlives this process, with defined umask, priority, signals and OOM
    score.

    ``output`` is the descriptor for its output; ``lock`` that of a file whose lock the program, but not its children,
    has until it exits. The caller reaps the process. Blocks for a moment.

    Raises: OSError if it cannot be started.
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
        if proc.set_oom_score_adjustment(child.pid, score):
            break
    return child


def _kernel_limit() -> int:
    most = proc.kernel_parameter("fs/nr_open")
    return min(OPEN_FILES, int(most)) if most is not None and most.isdecimal() else OPEN_FILES


def _usual_processes() -> int:
    """The hard limit of processes that the kernel gives to its first process. Source: kernel/fork.c, fork_init."""
    threads = proc.kernel_parameter("kernel/threads-max")
    return int(threads) // 2 if threads is not None and threads.isdecimal() else 0


@contextmanager
def _usual_thread() -> Iterator[None]:
    """This thread with the usual priority, scheduling policy and no blocked signal: a child inherits its thread's."""
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
    """What precedes a command if this process ignores signals (as by nohup), so that a plugin does not ignore them."""
    handled_anyway = (signal.SIGPIPE, signal.SIGXFSZ)  # by subprocess
    ignored = [each for each in signal.valid_signals() if signal.getsignal(each) is signal.SIG_IGN]
    program = shutil.which("env", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if program is None or not set(ignored) - set(handled_anyway):
        return []
    return [program, "--default-signal"]
