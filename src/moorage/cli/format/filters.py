"""Conditions of ``--filter``: KEY=VALUE as docker and podman have them. Pure.

Of one key any value may match, of several keys all must.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from moorage import errors

__all__ = ("matches", "name_matches", "parse_filters", "parse_flag")


def parse_filters(texts: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """The values of each key.

    Raises:
        errors.Invalid: a text is not KEY=VALUE, or a key is unknown
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().lower()
        if not equals:
            raise errors.Invalid(f"cannot use --filter {text}: it is not KEY=VALUE")
        if key not in known:
            close = get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise errors.Invalid(f"cannot use --filter {text}: unknown key {key}; {hint}")
        found.setdefault(key, []).append(value.strip())
    return found


def matches(filters: Mapping[str, Sequence[str]], tests: Mapping[str, Callable[[str], bool]]) -> bool:
    """Whether an object passes, by a test of a value for each key; keys without a test do not count."""
    return all(any(map(tests[key], values)) for key, values in filters.items() if key in tests)


def name_matches(name: str) -> Callable[[str], bool]:
    """A test of a value that is a part of this name, or a regular expression for one."""

    def test(value: str) -> bool:
        try:
            return value in name or re.search(value, name) is not None
        except re.error:
            return False

    return test


def parse_flag(key: str, text: str) -> bool:
    """A value that is true or false.

    Raises:
        errors.Invalid: it is neither
    """
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise errors.Invalid(f"cannot use --filter {key}={text}: give true or false")
    return known[text.lower()]
