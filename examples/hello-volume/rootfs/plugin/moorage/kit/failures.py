"""What a driver raises so that its caller is answered with a reason."""

__all__ = ("CallFailed", "InvalidCall")


class CallFailed(Exception):
    """A call that cannot be done; its text is for the user. Answered with status 500 and ``{"Err": text}``."""

    status = 500


class InvalidCall(CallFailed):
    """A request that is malformed, answered with status 400."""

    status = 400
