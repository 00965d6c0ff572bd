"""Linux capabilities and mount options, in any spelling that configs have: ``sys_admin``, ``rbind,ro`` as in fstab."""

import difflib
from collections.abc import Iterable

from moorage._lib.escapes import quote
from moorage.plugins import _base

__all__ = ("bind_option_warnings", "capability_problem", "normal_capability", "option_words")

_SIMILAR = {"readonly": "ro", "readwrite": "rw"}
_RECURSIVE = (
    "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "diratime", "nodiratime", "relatime", "norelatime",
    "atime", "noatime", "strictatime", "nostrictatime", "symfollow", "nosymfollow",
)  # fmt: skip
_PROPAGATION = ("private", "shared", "slave", "unbindable")
_BIND_OPTIONS = frozenset(
    (
        "acl", "async", "bind", "copy-symlink", "defaults", "dirsync", "idmap", "iversion", "lazytime", "loud", "mand",
        "noacl", "noiversion", "nolazytime", "nomand", "rbind", "remount", "ridmap", "silent", "src-nofollow", "sync",
        "tmpcopyup",
        *_RECURSIVE, *_PROPAGATION, *(f"r{each}" for each in (*_RECURSIVE, *_PROPAGATION)),
    )
)  # fmt: skip
"""What runc 1.3 (libcontainer/specconv) or crun 1.21 knows. The rest is data for the kernel, which ignores it here."""


def normal_capability(spelling: str) -> str:
    """The name as the kernel's headers write it, known or not."""
    return "CAP_" + spelling.strip().upper().removeprefix("CAP_")


def capability_problem(spelling: str) -> str:
    """The error for an unknown name, with a similar known one; empty for a known name."""
    name = normal_capability(spelling)
    if name in _base.CAPABILITIES:
        return ""
    near = difflib.get_close_matches(name[:40], _base.CAPABILITIES, n=1, cutoff=0.8)
    return f"Linux has none of this name{f'; did you mean {near[0]}?' if near else ''}"


def option_words(options: Iterable[str]) -> tuple[str, ...]:
    """Mount options one by one, without empty ones."""
    words = (word.strip() for each in options for word in each.split(","))
    return tuple(word for word in words if word)


def bind_option_warnings(words: Iterable[str]) -> list[str]:
    """What is said of each option that has no effect on a bind mount."""
    return [
        f"{quote(word)}: no option of a bind mount, ignored{_hint(word)}"
        for word in words
        if word.partition("=")[0] not in _BIND_OPTIONS
    ]


def _hint(word: str) -> str:
    folded = word.casefold().replace("-", "").replace("_", "")
    near = _SIMILAR.get(folded) or (folded if folded in _BIND_OPTIONS else "")
    return f"; did you mean {near}?" if near else ""
