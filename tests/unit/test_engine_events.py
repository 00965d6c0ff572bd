"""Events: delivered to listeners, and the newest stored."""

import time
from datetime import UTC, datetime

import anyio
import pytest

from moorage.engine.telemetry import EventLog
from support.limits import limit

pytestmark = pytest.mark.anyio


async def take(log: EventLog, count: int, since: int | None = None) -> list[str]:
    found = []
    with anyio.fail_after(limit(5)):
        async with log.listen(since) as events:
            async for event in events:
                found.append(event.action)
                if len(found) == count:
                    break
    return found


async def test_m13_a_listener_hears_what_happens_from_now_on() -> None:
    log = EventLog()
    log.publish("create", "1", "a")
    async with log.listen(None) as events:
        log.publish("enable", "1", "a", code="3")
        event = await anext(aiter(events))
    assert (event.action, event.id, event.name, event.attributes) == ("enable", "1", "a", {"code": "3"})
    assert abs((datetime.now(UTC) - event.at).total_seconds()) < 5
    assert event.nanoseconds // 1000 == round(event.at.timestamp() * 1e6)


async def test_m13_the_newest_256_are_stored() -> None:
    log = EventLog()
    for number in range(300):
        log.publish(str(number), "1", "a")
    assert await take(log, 256, time.time_ns() - 3600 * 10**9) == [str(each) for each in range(44, 300)]


async def test_m13_since_leaves_out_what_came_before() -> None:
    log = EventLog()
    log.publish("old", "1", "a")
    since = time.time_ns()
    log.publish("new", "1", "a")
    assert await take(log, 1, since) == ["new"]


async def test_a_listener_that_does_not_listen_is_let_go() -> None:
    log = EventLog()
    async with log.listen(None) as events:
        for number in range(3000):
            log.publish(str(number), "1", "a")
        received = [event.action async for event in events]
    assert received == [str(each) for each in range(1024)]


async def test_m13_until_includes_its_instant_and_ends_what_waits() -> None:
    log = EventLog()
    log.publish("old", "1", "a")
    log.publish("last", "1", "a")
    (old, last) = log._buffer
    with anyio.fail_after(limit(5)):
        async with log.listen(old.nanoseconds, last.nanoseconds) as events:
            assert [event.action async for event in events] == ["old", "last"]
        async with log.listen(old.nanoseconds, last.nanoseconds - 1) as events:
            assert "last" not in [event.action async for event in events]
        async with log.listen(time.time_ns(), time.time_ns() + 6 * 10**8) as events:
            received = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_publish_soon, log)
                received = [event.action async for event in events]
            assert received == ["soon"]


@pytest.mark.parametrize(("since", "received"), [(None, ["one", "two"]), (0, ["one", "two"])])
async def test_case_248_until_alone_and_since_0_give_the_buffered_events(
    since: int | None, received: list[str]
) -> None:
    log = EventLog()
    log.publish("one", "1", "a")
    log.publish("two", "1", "a")
    with anyio.fail_after(limit(5)):
        async with log.listen(since, time.time_ns()) as events:
            assert [event.action async for event in events] == received


async def test_case_226_both_bounds_are_exact_to_the_nanosecond() -> None:
    log = EventLog()
    for action in ("one", "two", "three"):
        log.publish(action, "1", "a")
    middle = log._buffer[1].nanoseconds
    for since, until, expected in (
        (middle, middle, ["two"]),
        (middle + 1, middle + 1, []),
        (0, middle - 1, ["one"]),
    ):
        async with log.listen(since, until) as events:
            assert [event.action async for event in events] == expected


async def _publish_soon(log: EventLog) -> None:
    await anyio.sleep(0.05)
    log.publish("soon", "1", "a")
