"""What starts a plugin, and how a request to stop it takes precedence."""

import anyio
import pytest

from moorage.engine.requests import StartControl, StartPhase

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


async def test_an_attempt_is_the_phase_until_its_block_is_left() -> None:
    starts = StartControl()
    phases = [starts.phase]
    async with starts.attempt():
        phases.append(starts.phase)
    assert [*phases, starts.phase] == [StartPhase.IDLE, StartPhase.STARTING, StartPhase.IDLE]


async def test_an_interrupted_attempt_leaves_its_block_silently() -> None:
    starts = StartControl()
    is_reached = False
    async with starts.attempt():
        starts.interrupt()
        assert starts.phase is StartPhase.STARTING  # until it has undone itself
        await anyio.sleep_forever()
        is_reached = True
    assert (is_reached, starts.phase) == (False, StartPhase.IDLE)


async def test_an_attempt_that_fails_raises_its_failure() -> None:
    starts = StartControl()
    with pytest.raises(ValueError, match="x"):
        async with starts.attempt():
            raise ValueError("x")
    assert starts.phase is StartPhase.IDLE


async def test_a_pause_ends_once_and_not_after_an_interruption() -> None:
    starts = StartControl()
    pause = starts.begin_pause()
    assert starts.phase is StartPhase.PAUSED
    assert starts.end_pause(pause)
    assert not starts.end_pause(pause)
    other = starts.begin_pause()
    starts.interrupt()
    assert (starts.phase, other.cancel_called, starts.end_pause(other)) == (StartPhase.IDLE, True, False)


async def test_a_pause_does_not_finish_the_start_after_it() -> None:
    starts = StartControl()
    pause = starts.begin_pause()
    async with starts.attempt():
        assert not starts.end_pause(pause)
        assert starts.phase is StartPhase.STARTING


async def test_stops_are_counted_and_interrupt_at_once() -> None:
    starts = StartControl()
    pause = starts.begin_pause()
    starts.accept_stop()
    starts.accept_stop()
    assert pause.cancel_called
    starts.finish_stop()
    assert starts.is_stop_pending
    starts.finish_stop()
    assert not starts.is_stop_pending


async def test_a_request_lasts_longer_than_its_attempt() -> None:
    starts = StartControl()
    with starts.requested():
        async with starts.attempt():
            pass
        assert (starts.is_requested, starts.phase) == (True, StartPhase.IDLE)
    assert not starts.is_requested
