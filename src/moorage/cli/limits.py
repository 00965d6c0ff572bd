"""Sizes and resource limits as people write them: "256m", "nofile=1024:4096"."""

import re
from typing import Any

import click

__all__ = ("SIZE", "ULIMIT", "parse_size", "parse_ulimit", "size_text")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_UNLIMITED = {"unlimited", "infinity", "-1"}


def parse_size(text: str) -> int:
    """Bytes, from a number with or without k, m, g or t (powers of 1024). Raises: ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a size like 256m or 2g (0 is no limit)")
    return int(float(found[1]) * (1 << _UNITS[found[2].lower()]))


def parse_ulimit(text: str) -> tuple[str, tuple[int, int]]:
    """Name, soft and hard limit, from NAME=SOFT[:HARD]; -1 is unlimited. Raises: ValueError."""
    name, equals, values = text.partition("=")
    soft, _, hard = values.partition(":")
    if not equals or not name:
        raise ValueError(f"{text!r} is not NAME=SOFT[:HARD], as in nofile=1024:4096")
    return name.strip().lower().removeprefix("rlimit_"), (_limit(soft), _limit(hard or soft))


def size_text(size: int) -> str:
    """A size as ``parse_size`` reads it."""
    for unit in ("t", "g", "m", "k"):
        if size and size % (1 << _UNITS[unit]) == 0:
            return f"{size >> _UNITS[unit]}{unit}"
    return str(size)


def _limit(text: str) -> int:
    text = text.strip().lower()
    if text in _UNLIMITED:
        return -1
    if not text.isdigit():
        raise ValueError(f"{text!r} is not a limit: give a number, or unlimited")
    return int(text)


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = _Parsed("size", parse_size)
ULIMIT = _Parsed("ulimit", parse_ulimit)
