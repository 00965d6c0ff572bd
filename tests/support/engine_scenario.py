"""Scenes with one plugin on a host in memory, with a clock that jumps; what tests of the engine's work share."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from moorage.engine.engine import Engine
from support.engine_world import Script, World, patch
from support.virtual_time import run_in_virtual_time

P = "p1:latest"
Play = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a scene in a world with one plugin."""
    patch(monkeypatch)

    def run(scene: Play) -> None:
        world = World(tmp_path)
        world.record(1)

        async def whole() -> None:
            try:
                await scene(world)
            finally:
                world.close()

        run_in_virtual_time(whole)

    return run


def script(world: World, what: Script) -> None:
    world.host.scripts[world.id(1)] = what


def state(engine: Engine) -> str:
    return engine.get(P).state.value


def actions(world: World) -> list[str]:
    return [event.action for event in world.events]


async def until(condition: Callable[[], object], within: float = 200.0) -> float:
    """The seconds that it took."""
    started = anyio.current_time()
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - by the clock
            await anyio.sleep(0.02)
    return anyio.current_time() - started
