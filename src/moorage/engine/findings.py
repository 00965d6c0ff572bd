"""What ``moorage doctor`` finds: one value for each thing that was looked at."""

from enum import Enum

from msgspec import Struct

__all__ = ("Finding", "Verdict")


class Verdict(Enum):
    """How bad a finding is."""

    GOOD = "ok"
    DOUBTFUL = "warning"
    BAD = "wrong"


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    text: str
    advice: str = ""
    """What to do; empty where nothing is wrong."""
