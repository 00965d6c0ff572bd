"""Names of Linux capabilities, in any spelling that configs have: ``CAP_SYS_ADMIN``, ``sys_admin``."""

import difflib

from moorage.plugins import _base

__all__ = ("capability_problem", "normal_capability")


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
