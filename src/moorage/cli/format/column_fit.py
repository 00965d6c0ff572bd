"""Columns of a table that fit a terminal: nothing wraps, what is too long is cut with an ellipsis. Pure."""

from collections.abc import Sequence

__all__ = ("cell_width", "cut", "fit_columns")

_READABLE = 12
"""Cells that a column retains as long as others can be made narrower: an id, a time."""
_LEAST = 4


def cell_width(text: str) -> int:
    """Cells of a terminal that a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    from unicodedata import combining, east_asian_width

    return 0 if combining(character) else 2 if east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """The text, or as much of its beginning as fits with an ellipsis."""
    if cell_width(text) <= width:
        return text
    used, taken = 1, []  # the ellipsis
    for each in text:
        used += _cells(each)
        if used > width:
            break
        taken.append(each)
    return "".join(taken) + "…" if width > 0 else ""


def fit_columns(heads: Sequence[int], widths: Sequence[int], room: int, gap: int) -> list[int]:
    """Widths of columns that fit into so many cells with gaps between them, if that is possible at all.

    First the widest become narrower, down to what can still be read; then the last, which has the description; then all
    but the first two down to their heads; then all; then the last ones are left out (0). ``heads`` are the widths of
    the heads, ``widths`` those that the columns would need.
    """
    found = list(widths)
    last = len(found) - 1
    readable = [min(width, max(_READABLE, head)) for head, width in zip(heads, widths, strict=True)]
    least = [min(width, _LEAST) for width in widths]
    short = [*readable[:2], *(min(head, width) for head, width in zip(heads[2:], widths[2:], strict=True))]
    for lowest in (readable, [*readable[:last], least[last]], [*short[:last], least[last]], least):
        _shrink(found, lowest, room - gap * last)
    for column in range(last, 0, -1):
        if sum(found) + gap * (sum(map(bool, found)) - 1) > room:
            found[column] = 0
    return found


def _shrink(widths: list[int], lowest: Sequence[int], room: int) -> None:
    """Make the widest column narrower until all fit, or none can be."""
    while (excess := sum(widths) - room) > 0:
        candidates = [(width, at) for at, width in enumerate(widths) if width > lowest[at]]
        if not candidates:
            return
        width, at = max(candidates)
        others = [each for each, other in candidates if other != at]
        step = max(1, min(excess, width - max(others, default=0)))
        widths[at] = max(lowest[at], width - step)
