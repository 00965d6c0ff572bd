"""No input makes a reader fail unexpectedly: plugins' answers, logs and the keeper's wire. ``scripts/fuzz`` does the same for longer."""

import os
import secrets

import pytest

from fuzz.answers import TARGETS
from fuzz.harness import Target, execute_many


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_crashes(target: Target) -> None:
    seed = 0 if "CI" in os.environ else secrets.randbits(32)
    assert execute_many(target, target.executions, seed) == target.executions
