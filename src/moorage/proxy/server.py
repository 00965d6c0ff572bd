"""The plugin proxy: one small process an engine, which serves the published sockets and outlives the engine.

This starts it in the background, below a guard that starts it again when it is killed (``guard``).

    python -m moorage.proxy.server STATE

The directory STATE contains ``p.sock``, the socket for engines (``protocol`` has the messages), ``pid`` with the pid of
the proxy, which is locked while it or its guard runs, ``ledger`` with a file for each plugin, and ``s`` with a socket
of each plugin for the engine's own calls. The command returns when this proxy, or another one, serves in the
background.
"""

import fcntl
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable

from moorage.proxy.guard import Guard, Handover

__all__ = ("main",)

_UNUSED_MODULES = ("ssl", "typing_extensions")
"""What asyncio and msgspec import if they can, and the proxy never uses: a third of its memory."""


def main(state: str) -> int:
    """Serve in the background; returns the exit status of the command, 0 also if another proxy serves."""
    lock = os.open(os.path.join(state, "pid"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    os.umask(0o177)  # no user connects to a socket before it has its mode
    path = os.path.join(state, "p.sock")
    if os.path.lexists(path):
        os.unlink(path)  # of a proxy that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind(path)
    ready, notify = os.pipe()
    if os.fork():
        os.close(notify)
        os._exit(0 if os.read(ready, 1) else 1)
    os.close(ready)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # SO_PEERCRED names this process, the guard, to engines: what kills it kills the proxy, too
    listener.listen(64)

    def notify_ready() -> None:
        os.write(notify, b"1")
        os.close(notify)

    _exclude_modules()
    run = _import_all()
    return Guard(lock, lambda handover: run(state, listener, handover), notify_ready).serve()


def _import_all() -> Callable[[str, socket.socket, Handover], None]:
    """What serves in each proxy. All that guard and proxy ever import of this package is imported now.

    When a proxy is started again, an upgrade may have replaced or removed the package.
    """
    import moorage.host.processes
    import moorage.timeouts  # noqa: F401 - both for the guard, which imports them where it uses them
    from moorage.proxy.run import run

    return run


def _exclude_modules() -> None:
    for name in _UNUSED_MODULES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None makes an import fail: sys.modules in Python's docs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
