"""Every kind of failure, once. Callers decide by kind, never by text.

A failure from outside (gRPC, the file system, a plugin) is translated into one of these kinds in the file that makes
the foreign call, with its cause (``raise errors.NotFound(...) from error``). The HTTP status that belongs to a
kind is in its docstring; only the API room turns one into the other.

Texts read "cannot <verb> <thing>: <why>", in the user's words.
"""

__all__ = (
    "Busy",
    "Conflict",
    "Denied",
    "Invalid",
    "InvalidResponse",
    "MoorageError",
    "NotFound",
    "Unauthorized",
    "Unavailable",
    "Unsupported",
    "is_disk_full",
)


class MoorageError(Exception):
    """Something went wrong that is none of the kinds below (HTTP 500)."""

    is_rolled_back: bool = False
    """Something had been changed, and what was before is current again."""


class Invalid(MoorageError):
    """The input is wrong and stays wrong until the caller changes it (HTTP 400)."""


class Unauthorized(MoorageError):
    """Credentials are missing or wrong (HTTP 401)."""


class Denied(MoorageError):
    """Who is asking is known and may not do this (HTTP 403)."""


class NotFound(MoorageError):
    """There is no such object (HTTP 404). A removal takes this for success."""


class Conflict(MoorageError):
    """The object exists, but in a state that does not allow this (HTTP 409)."""


class Unsupported(MoorageError):
    """This version, peer or machine cannot do this at all (HTTP 501)."""


class InvalidResponse(MoorageError):
    """A plugin or a registry answered, but with what cannot be used; neither the caller nor the engine is at fault
    (HTTP 502)."""


class Unavailable(MoorageError):
    """A peer cannot be reached or did not answer in time; the same call may succeed later (HTTP 503)."""


class Busy(Unavailable):
    """The peer answered that it cannot do this now: the connection to it works, but what it needs does not (HTTP 503).

    A lock that another call has is one reason, a process that does not answer the peer is another.
    """


def is_disk_full(error: MoorageError) -> bool:
    """Whether it is containerd's that the disk is full, which it says under several codes."""
    return "no space left on device" in str(error)
