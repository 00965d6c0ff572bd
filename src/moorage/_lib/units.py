"""Times and sizes as people read them."""

__all__ = ("ago", "duration", "size")

_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def ago(text: str | None) -> str:
    """How long ago an instant was, "3 minutes ago"; how far ahead, "in 5 seconds"; empty for none."""
    if not text:
        return ""
    from datetime import UTC, datetime  # most tables have no time

    distance = (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()
    words = duration(abs(distance))
    if not words:
        return "now"
    return f"{words} ago" if distance > 0 else f"in {words}"


def duration(seconds: float) -> str:
    """A time in its largest whole unit, "3 minutes"; empty for less than a second."""
    count, unit = next(((int(seconds // size), unit) for size, unit in _UNITS if seconds >= size), (0, ""))
    return f"{count} {unit}{'' if count == 1 else 's'}" if unit else ""


def size(value: float | None) -> str:
    """Bytes for people: ``12.5 MiB``; ``-`` for None."""
    if value is None:
        return "-"
    for unit in _SIZES:
        if value < 1024 or unit == _SIZES[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.4g} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes all")
