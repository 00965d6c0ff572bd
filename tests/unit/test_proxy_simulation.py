"""The core of the plugin proxy under every fault, in random stories. What is checked: support.proxy_simulator."""

import pytest

from support.proxy_simulator import Simulation

pytestmark = pytest.mark.quick

STORIES, STEPS = 60, 150


@pytest.mark.parametrize("replays", [True, False])
@pytest.mark.parametrize("block", range(5))
def test_p04_p09_p11_whatever_fails_each_call_is_answered_once_and_no_mount_is_lost(block: int, replays: bool) -> None:
    for seed in range(block * STORIES, (block + 1) * STORIES):
        story = Simulation(seed, replays=replays)
        try:
            for _ in range(STEPS):
                story.step()
            story.recover()
        except Exception as error:
            raise AssertionError(f"story {seed}") from error
