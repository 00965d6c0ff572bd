"""Paths inside a plugin as paths of the host (row P07). Text only: whether they agree is checked elsewhere."""

from collections.abc import Sequence
from functools import lru_cache

from msgspec import Struct

from moorage.proxy.protocol import PathRule

__all__ = ("TranslatedPath", "components", "find_rule", "to_host")

_ORDER = ("propagated", "bind", "root")
_REMEMBERED = 256
"""Paths whose parts are remembered: those of the rules are needed with each call."""
_LONGEST = 4096
"""Bytes of a path that the kernel takes, with the NUL after it. Source: linux/limits.h, PATH_MAX."""


class TranslatedPath(Struct, frozen=True):
    """A path of the host, and the rule that it comes from."""

    path: str
    rule: PathRule


def components(path: str) -> tuple[str, ...] | None:
    """The parts of an absolute path; None for one that is relative or too long, or that has ``..`` or NUL in it."""
    return _components(path) if len(path) < _LONGEST else None  # a plugin's path of megabytes is not to be remembered


@lru_cache(_REMEMBERED)
def _components(path: str) -> tuple[str, ...] | None:
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    if not path.startswith("/") or "\0" in path or ".." in parts:
        return None
    return parts


def find_rule(rules: Sequence[PathRule], inside: str) -> PathRule | None:
    """The rule for a path inside: the longest one of whole components, of equals the propagated one, then the bind."""
    parts = components(inside)
    if parts is None:
        return None
    best: PathRule | None = None
    best_key = (-1, 0)
    for rule in rules:
        above = components(rule.inside)
        if above is None or parts[: len(above)] != above:
            continue
        key = (len(above), -_ORDER.index(rule.kind))
        if key > best_key:
            best, best_key = rule, key
    return best


def to_host(rules: Sequence[PathRule], inside: str) -> TranslatedPath | None:
    """The host's path of a path inside the plugin; None if no rule has it, or it could lead outside of one."""
    rule = find_rule(rules, inside)
    parts = components(inside)
    if rule is None or parts is None:
        return None
    rest = parts[len(components(rule.inside) or ()) :]
    return TranslatedPath("/".join((rule.outside.rstrip("/"), *rest)) or "/", rule)
