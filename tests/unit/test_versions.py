"""One version of a plugin instead of another, on a host in memory with a clock that jumps, and killed anywhere."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from moorage import errors
from moorage.engine.changes.trial import change_version, check_can_change
from moorage.engine.changes.values import ChangeTerms
from moorage.engine.engine import Engine
from moorage.engine.grants import Grants
from moorage.engine.values import PluginVersion
from moorage.plugins import Config, Overrides, compute_privileges, effective_settings
from support.awaits import Awaits, drive_inboxes
from support.engine_world import CONFIG, Script, World, patch
from support.virtual_time import run_in_virtual_time

pytestmark = pytest.mark.quick

P = "p1:latest"
NEW = CONFIG.replace('"name": "A"', '"name": "B"')
Play = Callable[[World], Awaitable[None]]


@pytest.fixture
def play(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a scene in a world with one plugin, whose overrides the new version knows only in part."""
    patch(monkeypatch)

    def run(scene: Play) -> None:
        base: Path = tmp_path_factory.mktemp("world")
        world = World(base)
        record = world.record(1)
        world.store.save(replace(record, overrides=Overrides(env=(("A", "mine"),))))
        world.host.owners = {record.image: record.id, "image-1#new": record.id}

        async def whole() -> None:
            try:
                await scene(world)
            finally:
                world.close()

        run_in_virtual_time(whole)

    return run


def new_version(world: World) -> PluginVersion:
    """It is in containerd; the caller of a change has seen to that."""
    world.host.images.add("image-1#new")
    return PluginVersion("r:2", NEW, "image-1#new", "sha256:y", "o", "k-new", Overrides(), ("odd",))


async def agree(config: Config, overrides: Overrides) -> Grants:
    return Grants(compute_privileges(config, effective_settings(config, overrides)))


async def change(world: World, engine: Engine, *, restart: bool = False, force: bool = False) -> tuple[str, ...]:
    plugin = engine._plugins.get(P)
    dropped: tuple[str, ...] = ()

    async def job() -> None:
        nonlocal dropped
        terms = ChangeTerms(restart=restart, force=force)
        dropped = await change_version(engine._context, plugin, new_version(world), agree, terms)

    await plugin.inbox.do(job)
    return dropped


def on_disk(world: World) -> tuple[str, str, str, bool]:
    """What matters of the record: digest, root, config, and whether it is sure of itself."""
    (record,) = world.store.load().records
    return record.digest, record.snapshot, record.config, record.previous is None


OLD_ONE = ("sha256:x", "k", CONFIG, True)
NEW_ONE = ("sha256:y", "k-new", NEW, True)


def test_d07_case_012_a_disabled_plugin_gets_the_version_and_loses_what_no_longer_applies(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            assert await change(world, engine) == ("A.value",)
            assert on_disk(world) == NEW_ONE
            view = engine.get(P)
            assert (view.enabled, view.config.env[0].name, view.reference, view.warnings) == (
                False,
                "B",
                "r:2",
                ("odd",),
            )
            assert view.id == world.id(1)
        assert world.store.load().records[0].overrides == Overrides()

    play(scene)


def test_d07_case_075_a_running_plugin_is_stopped_changed_and_started(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(
                errors.Conflict, match=r"must be disabled before upgrading: plugin p1:latest is enabled"
            ):
                await change(world, engine)
            assert await change(world, engine, restart=True) == ("A.value",)
            view = engine.get(P)
            assert (view.enabled, view.state.value, world.host.alive()) == (True, "ready", [f"{view.id}.2"])
            assert world.host.root == "k-new"
            assert on_disk(world) == NEW_ONE

    play(scene)


@pytest.mark.parametrize("what", [Script.SILENT, Script.EXITS, Script.REFUSED])
def test_d07_case_075_a_version_that_does_not_come_up_gives_way_to_the_one_before(play: Any, what: Script) -> None:
    async def scene(world: World) -> None:
        world.host.scripts_of_roots["k-new"] = what
        async with world.run() as engine:
            await engine.enable(P, 5)
            with pytest.raises(
                errors.MoorageError, match=r"cannot upgrade plugin p1:latest: .*; the version of before"
            ):
                await change(world, engine, restart=True)
            view = engine.get(P)
            assert (view.enabled, view.state.value, world.host.alive()) == (True, "ready", [f"{view.id}.3"])
            assert world.host.root == "k"
            assert on_disk(world) == OLD_ONE
            assert world.store.load().records[0].overrides.env == (("A", "mine"),)
            assert view.config.env[0].name == "A"

    play(scene)


def test_d07_a_plugin_in_use_is_left_alone_unless_forced(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            await engine.acquire(P, "somebody", is_attached=False)
            with pytest.raises(errors.Conflict, match=r"plugin p1:latest is in use by somebody"):
                await change(world, engine, restart=True)
            await change(world, engine, restart=True, force=True)
            assert on_disk(world) == NEW_ONE

    play(scene)


def test_d07_a_plugin_that_is_being_removed_gets_no_version(play: Any) -> None:
    async def scene(world: World) -> None:
        world.host.stuck_images = 1
        async with world.run() as engine:
            with suppress(errors.Unavailable):
                await engine.remove(P, force=False)
            with pytest.raises(errors.Conflict, match=r"it is being removed"):
                check_can_change(engine._plugins.get(P), ChangeTerms(restart=True, force=True))

    play(scene)


def test_d07_a_removal_takes_a_version_that_was_tried_out_along(play: Any) -> None:
    async def scene(world: World) -> None:
        (record,) = world.store.load().records
        tried = new_version(world)
        world.store.save(replace(record, removing=True, previous=PluginVersion.of(record), image=tried.image))
        async with world.run() as engine:
            assert engine.list() == []
            assert world.host.images == set()

    play(scene)


@pytest.mark.parametrize("what", [Script.LISTENS, Script.EXITS])
@pytest.mark.parametrize("enabled", [True, False])
def test_d07_killed_anywhere_it_is_one_version_or_the_other(play: Any, what: Script, enabled: bool) -> None:
    seen = set()

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
                    await change(world, engine, restart=True)
                reached = awaits.reached
            async with world.run() as engine:
                found = on_disk(world)
                assert found in (OLD_ONE, NEW_ONE)
                seen.add(found)
                assert world.host.images == {world.store.load().records[0].image}
                view = engine.get(P)
                assert (view.enabled, view.state.value) == (enabled, "ready" if enabled else "disabled")
                assert len(world.host.alive()) == enabled
                assert not enabled or world.host.root == found[1]

        play(scene)
        return reached

    at = 0
    while at_await(at):
        at += 1
    assert at >= (4 if enabled else 2)
    # the whole change is done in the last round, when nothing is killed
    assert seen == ({OLD_ONE} if enabled and what is Script.EXITS else {OLD_ONE, NEW_ONE})
