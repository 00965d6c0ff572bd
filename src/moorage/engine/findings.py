"""What ``moorage doctor`` finds: one value for each thing that was looked at."""

from dataclasses import dataclass
from enum import Enum

__all__ = ("Finding", "Verdict")


class Verdict(Enum):
    """How bad a finding is."""

    GOOD = "ok"
    DOUBTFUL = "warning"
    BAD = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    text: str
    advice: str = ""
    """What to do; empty where nothing is wrong."""
