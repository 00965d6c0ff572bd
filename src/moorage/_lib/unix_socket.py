"""Whether somebody listens on a unix socket: a file alone is not enough, it outlives its owner."""

import os
import socket
import stat

__all__ = ("accepts", "is_socket")


def accepts(path: str | os.PathLike[str]) -> bool:
    """Whether a unix socket takes a connection now. Never waits: connect() succeeds, or says at once why not."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(os.fspath(path))
        except BlockingIOError:
            return True  # somebody listens, and has more waiting than fit in his queue
        except OSError:
            return False
        return True


def is_socket(path: str | os.PathLike[str]) -> bool:
    """Whether a socket stands there itself. A link to one is none: in a plugin's directory it may lead anywhere."""
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False
