"""JSON that others wrote: one way to fail, whatever is wrong with it."""

from typing import Any

__all__ = ("decode_json",)


def decode_json(raw: bytes) -> Any:
    """The value of a JSON document. Raises: ValueError, also for one that is nested too deeply to be read."""
    import msgspec  # late: the command line starts without it

    try:
        return msgspec.json.decode(raw)
    except RecursionError as error:
        raise ValueError("JSON is malformed: it is nested too deeply") from error
