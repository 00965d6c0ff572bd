"""The address of an engine as users write it. Imports nothing slow: every command reads it."""

from moorage import errors

__all__ = ("DEFAULT_HOST", "socket_of")

DEFAULT_HOST = "unix:///run/moorage/moorage.sock"


def socket_of(host: str) -> str:
    """The path of the socket of a host: ``unix://PATH``, or an absolute path.

    Raises:
        errors.Invalid: it is neither
    """
    path = host.removeprefix("unix://")
    if not path.startswith("/"):
        raise errors.Invalid(f"cannot use host {host}: it must be unix:// and an absolute path")
    return path
