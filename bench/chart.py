"""One chart of a result: each line of the table as a bar from the peer's median to Moorage's, as SVG. Pure."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.report import Measured, peer_name

__all__ = ("chart",)

_WIDTH, _ROW, _LABELS, _TOP = 880, 20, 400, 44
_SPAN = 5.0  # octaves on each side of the peer: 1/32 to 32 times
_COLOURS = {True: "#2da44e", False: "#cf222e", None: "#8c959f"}
_STYLE = "font: 12px sans-serif; fill: #57606a"


def chart(measured: Sequence[Measured], plugins: int) -> str:
    """How many times the peer's cost each figure is; to the left Moorage takes less."""
    shown = [each for each in measured if each.ratio]
    height = _TOP + _ROW * len(shown) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" style="{_STYLE}">',
        "<title>Cost of Moorage, compared with each peer</title>",
        *(_scale(octave, height) for octave in range(-5, 6)),
        *(_bar(each, _TOP + _ROW * number, plugins) for number, each in enumerate(shown)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _at(octaves: float) -> float:
    middle = _LABELS + (_WIDTH - _LABELS) / 2
    return middle + max(-_SPAN, min(_SPAN, octaves)) * ((_WIDTH - _LABELS) / 2 - 24) / _SPAN


def _scale(octave: int, height: int) -> str:
    x = _at(octave)
    name = f"{2**octave}" if octave >= 0 else f"1/{2**-octave}"
    colour = "#57606a" if octave == 0 else "#d0d7de"
    line = f'<path d="M{x:.1f} {_TOP - 8}V{height - 8}" stroke="{colour}" fill="none"/>'
    return f'{line}<text x="{x:.1f}" y="{_TOP - 16}" text-anchor="middle">{name}</text>'


def _bar(measured: Measured, y: int, plugins: int) -> str:
    assert measured.ratio is not None
    goal = measured.line.goal
    is_inverse = measured.line.unit == "MB/s" or (goal is not None and goal.is_least)
    end, middle = _at(math.log2(1 / measured.ratio if is_inverse else measured.ratio)), _at(0)
    label = escape(f"{measured.line.what.format(plugins=plugins)} / {peer_name(measured.line)}".replace("`", ""))
    text = f'<text x="{_LABELS - 8}" y="{y + 13}" text-anchor="end">{label}</text>'
    left, width = min(end, middle), max(abs(end - middle), 1)
    colour = _COLOURS[measured.is_met]
    return f'{text}<rect x="{left:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}" fill="{colour}"/>'
