"""Every kind of failure, once. Callers decide by kind, never by text.

A failure from outside (gRPC, the file system, a plugin) is translated into one of these kinds in the file that makes
the foreign call, with the cause kept (``raise errors.NotFound(...) from error``). The HTTP status that belongs to a
kind stands in its docstring; only the API room turns one into the other.

Texts read "cannot <verb> <thing>: <why>", in the user's words.
"""

__all__ = (
    "Conflict",
    "Denied",
    "Invalid",
    "MoorageError",
    "NotFound",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
    "is_disk_full",
)


class MoorageError(Exception):
    """Something went wrong that is none of the kinds below (HTTP 500)."""


class Invalid(MoorageError):
    """The input is wrong and stays wrong until somebody changes it (HTTP 400)."""


class Unauthorized(MoorageError):
    """Nobody said who is asking, or the credentials are wrong (HTTP 401)."""


class Denied(MoorageError):
    """Who is asking is known and may not do this (HTTP 403)."""


class NotFound(MoorageError):
    """There is no such thing (HTTP 404). Whoever wanted it gone takes this for success."""


class Conflict(MoorageError):
    """The thing is there, but in a state that does not allow this (HTTP 409)."""


class Unsupported(MoorageError):
    """This version, peer or machine cannot do this at all (HTTP 501)."""


class Unavailable(MoorageError):
    """A peer cannot be reached or did not answer in time; the same call may succeed later (HTTP 503)."""


def is_disk_full(error: MoorageError) -> bool:
    """Whether it is containerd's that the disk is full, which it says under several codes."""
    return "no space left on device" in str(error)
