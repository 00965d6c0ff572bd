"""How often containerd is subscribed to, where each subscription is lost again, with a clock that jumps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from moorage import errors
from moorage.containerd.types import Envelope
from moorage.executor.watch import watch
from moorage.timeouts import Timeouts
from support.virtual_time import run_in_virtual_time

pytestmark = pytest.mark.quick


class Flapping:
    """A containerd that takes each subscription and drops it after so many seconds."""

    def __init__(self, lives: float) -> None:
        self.lives = lives
        self.made_at: list[float] = []

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[Envelope]]:
        self.made_at.append(anyio.current_time())
        yield self._none()

    async def _none(self) -> AsyncIterator[Envelope]:
        await anyio.sleep(self.lives)
        if self.lives < 0:
            yield NotImplemented  # never: this makes it a generator
        raise errors.Unavailable("the stream was dropped")


def subscriptions(lives: float, seconds: float) -> list[float]:
    client: Any = Flapping(lives)

    async def main() -> None:
        async def run(*, task_status: TaskStatus[None]) -> None:
            await watch(client, lambda envelope: None, lambda: None, Timeouts(), task_status=task_status)

        async with anyio.create_task_group() as tasks:
            await tasks.start(run)
            await anyio.sleep(seconds)
            tasks.cancel_scope.cancel()

    run_in_virtual_time(main)
    return client.made_at  # type: ignore[no-any-return]  # it is a Flapping


@pytest.mark.parametrize("lives", [0.0, 0.01, 1.0])
def test_d14_a_subscription_that_is_dropped_at_once_is_made_ever_less_often(lives: float) -> None:
    made_at = subscriptions(lives, 120)
    gaps = [after - before - lives for before, after in pairwise(made_at)]
    assert min(gaps[-5:]) >= Timeouts().reconnect_limit / 2
    assert len(made_at) <= 120 / (Timeouts().reconnect_limit / 2) + 10


def test_d14_a_subscription_that_lasted_is_made_again_at_once() -> None:
    made_at = subscriptions(Timeouts().steady, 100)
    assert [after - before for before, after in pairwise(made_at)] == [Timeouts().steady] * 9
