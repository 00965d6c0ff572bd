"""What ``moorage doctor`` reports."""

from enum import Enum

from msgspec import Struct

__all__ = ("Finding", "Verdict")


class Verdict(Enum):
    """Whether a finding is a problem."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(Struct, frozen=True):
    """The result of one check."""

    subject: str
    """What was checked."""
    verdict: Verdict
    text: str
    advice: str = ""
    """How to fix it; empty where nothing is wrong."""
