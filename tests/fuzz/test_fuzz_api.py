"""No input makes a reader fail unexpectedly: requests to the API. ``scripts/fuzz`` does the same for longer."""

import os
import secrets

import pytest

from fuzz.api import TARGETS
from fuzz.harness import Target, execute_many


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_crashes(target: Target) -> None:
    seed = 0 if "CI" in os.environ else secrets.randbits(32)
    assert execute_many(target, target.executions, seed) == target.executions
