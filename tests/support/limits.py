"""How long tests wait before they give up: one factor for all of them, for machines that are slow."""

import math
import os

VARIABLE = "MOORAGE_TEST_PATIENCE"
"""How many times slower than usual this machine may be (a number such as 10 for an emulated one); 1 where unset."""


def factor(value: str) -> float:
    """The value of the variable. Raises: ValueError."""
    number = float(value or 1)
    if not 0 < number < math.inf:
        raise ValueError(f"{VARIABLE} is a positive number, and not {value}")
    return number


_FACTOR = factor(os.environ.get(VARIABLE, ""))


def limit(seconds: float) -> float:
    """A bound against a hang, in seconds, as long as this machine needs. Every number that bounds a wait goes through
    here where it is written, except for a time that is meant to pass.
    """
    return seconds * _FACTOR
