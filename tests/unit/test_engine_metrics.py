"""What is counted: steps of plugins on a host in memory, calls of a connection, buckets, addresses, the exposition."""

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from moorage import errors
from moorage.api.metrics import parse_address, render
from moorage.containerd._proto import empty_pb2
from moorage.containerd._rpc import GrpcConnection
from moorage.containerd.types import AlreadyExists
from moorage.engine.lifecycle import STEADY_AFTER, State
from moorage.engine.telemetry import EngineCounters, Histogram, Metrics, PluginMetrics
from support.conditions import eventually
from support.engine_world import Script, World, patch
from support.limits import limit
from support.virtual_time import run_in_virtual_time

pytestmark = pytest.mark.quick

P = "p1:latest"


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a scene in a world with one plugin."""
    patch(monkeypatch)

    def run(scene: Callable[[World], Awaitable[None]]) -> None:
        world = World(tmp_path)
        world.record(1)

        async def whole() -> None:
            try:
                await scene(world)
            finally:
                world.close()

        run_in_virtual_time(whole)

    return run


async def plugin(world: World) -> PluginMetrics:
    [only] = (await world.engine.metrics()).plugins
    return only


def test_a_start_and_a_stop_are_timed_and_every_exit_is_counted(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            before = await engine.metrics()
            assert before.states == {state: int(state is State.DISABLED) for state in State}
            assert (before.starts.count, before.stops.count, before.is_containerd_up) == (0, 0, True)
            await engine.enable(P, 5)
            assert ((await plugin(world)).is_ready, (await plugin(world)).exits) == (True, {})
            await engine.disable(P, force=False)
            after = await engine.metrics()
            assert (after.starts.count, after.stops.count) == (1, 1)
            assert 0 <= after.starts.seconds < 5
            assert sum((await plugin(world)).exits.values()) == 1
            assert (await plugin(world)).restarts == 0
            await engine.remove(P, force=False)
            assert (await engine.metrics()).plugins == ()

    play(scene)


def test_restarts_by_themselves_are_counted_and_those_of_the_user_are_not(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            for number in range(1, 4):
                await anyio.sleep(STEADY_AFTER + 1)
                world.host.end_all(1)
                await eventually(lambda number=number: restarts_and_ready(world) == (number, True))  # type: ignore[misc]
            assert (await plugin(world)).exits == {("1", "", "false"): 3}
            await engine.restart(P)
            metrics = await engine.metrics()
            assert (metrics.plugins[0].restarts, metrics.starts.count, metrics.stops.count) == (3, 5, 1)

    play(scene)


def restarts_and_ready(world: World) -> tuple[int, bool]:
    [only] = world.engine._plugins.all()
    return only.counts.restarts, only.is_ready


def test_a_start_that_fails_is_neither_a_start_nor_a_stop(play: Any) -> None:
    async def scene(world: World) -> None:
        world.host.scripts[world.id(1)] = Script.EXITS
        async with world.run() as engine:
            with pytest.raises(errors.MoorageError):
                await engine.enable(P, 5)
            metrics = await engine.metrics()
            assert (metrics.starts.count, metrics.stops.count, metrics.plugins[0].restarts) == (0, 0, 0)
            assert metrics.plugins[0].exits == {("3", "", "false"): 1}

    play(scene)


def test_a_plugin_that_is_taken_over_was_not_started_and_one_that_exited_meanwhile_is_counted(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
        async with world.run() as engine:
            metrics = await engine.metrics()
            assert (metrics.states[State.READY], metrics.starts.count, metrics.plugins[0].exits) == (1, 0, {})
        world.host.end_all(1)
        async with world.run() as engine:
            metrics = await engine.metrics()
            assert (sum(metrics.plugins[0].exits.values()), metrics.plugins[0].restarts) == (1, 1)

    play(scene)


def test_without_containerd_there_are_metrics_that_say_so(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            engine._availability.set(None)
            assert (await engine.metrics()).is_containerd_up is False

    play(scene)


@pytest.mark.anyio
async def test_a_connection_reports_its_calls_and_their_failures(tmp_path: Path) -> None:
    meter = EngineCounters()
    connection = GrpcConnection(str(tmp_path / "no-listener"), meter.called)
    for _ in range(2):
        with pytest.raises(errors.Unavailable, match="cannot reach"):
            await connection.unary(
                "/a.b.Tasks/Start", empty_pb2.Empty(), empty_pb2.Empty, namespace="n", within=limit(5)
            )
    connection.close()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        connection = GrpcConnection(str(tmp_path / "deaf"), meter.called)
        with pytest.raises(errors.Unavailable, match="did not answer"):
            await connection.unary("/a.b.Tasks/Kill", empty_pb2.Empty(), empty_pb2.Empty, namespace="n", within=0.05)
        with anyio.move_on_after(0.05) as scope:
            await connection.unary("/a.b.Tasks/Get", empty_pb2.Empty(), empty_pb2.Empty, namespace="n", within=limit(5))
        assert scope.cancelled_caught
        connection.close()
    assert {method: histogram.view().count for method, histogram in meter.calls.items()} == {
        "Tasks.Start": 2,
        "Tasks.Kill": 1,
    }
    assert meter.failures == {("Tasks.Start", "Unavailable"): 2, ("Tasks.Kill", "Unavailable"): 1}


def test_a_kind_is_one_of_the_house_and_a_call_that_went_well_has_none() -> None:
    meter = EngineCounters()
    meter.called("Images.Create", 0.5, AlreadyExists("x"))
    meter.called("Images.Create", 0.5, None)
    assert meter.failures == {("Images.Create", "Conflict"): 1}
    assert meter.calls["Images.Create"].view().count == 2


@given(st.lists(st.floats(0, 100), max_size=30))
def test_each_bucket_has_what_is_at_most_its_bound(values: list[float]) -> None:
    histogram = Histogram((0.1, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    view = histogram.view()
    assert view.within == tuple(sum(value <= bound for value in values) for bound in view.bounds)
    assert view.count == len(values)
    assert view.seconds == pytest.approx(sum(values))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9469", ("127.0.0.1", 9469)),
        (":9469", ("127.0.0.1", 9469)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9469", ("::1", 9469)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["9469", "here:", "here:x", "here:65536", "::1:9469", "here:-1", "here:²"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(errors.Invalid, match=r"cannot serve metrics on .*9469"):
        parse_address(text)


def test_the_exposition_says_the_same_in_both_formats(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            await engine.enable(P, 5)
            metrics, info = await engine.metrics(), engine.info()
            plain, plain_type = render(metrics, info)
            open_, open_type = render(metrics, info, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
            assert plain_type.startswith("text/plain; version=0.0.4")
            assert open_type.startswith("application/openmetrics-text; version=1.0.0")
            assert open_.endswith(b"# EOF\n")
            found = samples(text_string_to_metric_families(plain.decode()))
            parse: Any = parse_openmetrics
            assert found == samples(parse(open_.decode()))
            assert found["moorage_plugin_ready", (("plugin", P),)] == 1

    play(scene)


def samples(families: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(it.name, tuple(sorted(it.labels.items()))): it.value for family in families for it in family.samples}


def test_a_name_with_any_character_is_one_label(play: Any) -> None:
    async def scene(world: World) -> None:
        async with world.run() as engine:
            metrics: Metrics = await engine.metrics()
            odd = replace(metrics.plugins[0], name='a"b\\c\nd')
            body, _ = render(replace(metrics, plugins=(odd,)), engine.info())
            found = samples(text_string_to_metric_families(body.decode()))
            assert found["moorage_plugin_ready", (("plugin", odd.name),)] == 0

    play(scene)
