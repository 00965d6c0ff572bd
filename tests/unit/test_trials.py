"""A change of version, settings, policy and desired state is one: tried out, rolled back, and killed anywhere."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from moorage import errors
from moorage.engine.changes.trial import change_version
from moorage.engine.changes.values import ChangeTerms, PluginChange, PolicyChange
from moorage.engine.engine import Engine
from moorage.engine.grants import Grants
from moorage.engine.lifecycle import Restarts
from moorage.engine.values import PluginVersion
from moorage.plugins import Config, Overrides, compute_privileges, effective_settings
from support.awaits import Awaits, drive_inboxes
from support.engine_world import CONFIG, Script, World, patch
from support.virtual_time import run_in_virtual_time

pytestmark = pytest.mark.quick

P = "p1:latest"
Play = Callable[[World], Awaitable[None]]
OLD = ("k", (("A", "old"),), "always")
NEW_SETTINGS = ("k", (("A", "new"),), "never")
NEW_VERSION = ("k-new", (("A", "new"),), "never")


@pytest.fixture
def play(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a scene in a world with one plugin, whose setting A is old."""
    patch(monkeypatch)

    def run(scene: Play) -> None:
        base: Path = tmp_path_factory.mktemp("world")
        world = World(base)
        record = world.record(1)
        world.store.save(replace(record, overrides=Overrides(env=(("A", "old"),))))
        world.host.owners = {record.image: record.id, "image-1#new": record.id}

        async def whole() -> None:
            try:
                await scene(world)
            finally:
                world.close()

        run_in_virtual_time(whole)

    return run


async def agree(config: Config, overrides: Overrides) -> Grants:
    return Grants(compute_privileges(config, effective_settings(config, overrides)))


async def change(world: World, engine: Engine, *, is_upgrade: bool) -> None:
    """Another setting, another policy, enabled; with ``is_upgrade`` another version as well."""
    plugin = engine._plugins.get(P)
    desired = PluginChange(assignments=("A=new",), policy=PolicyChange(restarts="never"))
    version = None
    if is_upgrade and plugin.record.snapshot != "k-new":  # as the caller does, which compares references
        world.host.images.add("image-1#new")
        version = PluginVersion("r:2", CONFIG, "image-1#new", "sha256:y", "o", "k-new", Overrides(), ())

    async def job() -> None:
        await change_version(engine._context, plugin, version, agree, ChangeTerms(restart=True, desired=desired))

    await plugin.inbox.do(job)


def on_disk(world: World) -> tuple[str, object, str]:
    (record,) = world.store.load().records
    assert (record.previous, record.previous_terms) == (None, None)
    return record.snapshot, record.overrides.env, record.policy.restarts.value


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("is_upgrade", [True, False])
def test_f05_version_settings_and_policy_are_one_change_with_one_stop(
    play: Any, enabled: bool, is_upgrade: bool
) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            if enabled:
                await engine.enable(P, 5)
            await change(world, engine, is_upgrade=is_upgrade)
            view = engine.get(P)
            assert on_disk(world) == (NEW_VERSION if is_upgrade else NEW_SETTINGS)
            assert (view.enabled, view.state.value, view.policy.restarts) == (True, "ready", Restarts.NEVER)
            assert world.host.alive() == [f"{view.id}.{2 if enabled else 1}"]

    play(scene)


@pytest.mark.parametrize("enabled", [True, False])
def test_f05_what_does_not_come_up_is_rolled_back_together(play: Any, enabled: bool) -> None:
    async def scene(world: World) -> None:
        world.host.scripts_of_roots["k-new"] = Script.EXITS
        async with world.run() as engine:
            if enabled:
                await engine.enable(P, 5)
            with pytest.raises(errors.MoorageError, match=r"what was before is current again") as caught:
                await change(world, engine, is_upgrade=True)
            assert caught.value.is_rolled_back
            view = engine.get(P)
            assert on_disk(world) == OLD
            assert (view.enabled, view.state.value) == (enabled, "ready" if enabled else "disabled")
            assert len(world.host.alive()) == enabled

    play(scene)


@pytest.mark.parametrize(
    ("what", "is_upgrade"), [(Script.LISTENS, True), (Script.LISTENS, False), (Script.EXITS, True)]
)
@pytest.mark.parametrize("enabled", [True, False])
def test_f05_killed_anywhere_all_is_old_or_all_is_new_and_the_next_apply_ends_as_an_undisturbed_one(
    play: Any, what: Script, enabled: bool, is_upgrade: bool
) -> None:
    seen = set()
    new = NEW_VERSION if is_upgrade else NEW_SETTINGS

    def at_await(at: int) -> bool:
        reached = False

        async def scene(world: World) -> None:
            nonlocal reached
            world.host.scripts_of_roots["k-new"] = what
            async with world.run() as engine:
                if enabled:
                    await engine.enable(P, 5)

                def kill() -> None:
                    world.host.era += 1
                    engine._store.is_killed = True  # type: ignore[attr-defined]  # a KilledStore

                awaits = Awaits(at, kill)
                with drive_inboxes(awaits), suppress(errors.MoorageError):
                    await change(world, engine, is_upgrade=is_upgrade)
                reached = awaits.reached
            async with world.run() as engine:
                found = on_disk(world)
                seen.add(found)
                view = engine.get(P)
                is_up = enabled or found == new
                assert (view.enabled, view.state.value) == (is_up, "ready" if is_up else "disabled")
                assert world.host.images == {world.store.load().records[0].image}
                with suppress(errors.MoorageError):
                    await change(world, engine, is_upgrade=is_upgrade)
                assert on_disk(world) == (OLD if what is Script.EXITS else new)
                assert engine.get(P).enabled == (enabled or what is Script.LISTENS)
                assert len(world.host.alive()) == engine.get(P).enabled

        play(scene)
        return reached

    at = 0
    while at_await(at):
        at += 1
    assert at >= 4
    assert seen == ({OLD} if what is Script.EXITS else {OLD, new})
