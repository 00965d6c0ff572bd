"""What an executor may rely on from its client: one suite, on the fake and on a real containerd."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import anyio
import pytest

from moorage import errors
from moorage.containerd.types import Event, Status, TaskExit, TaskStarted
from moorage.executor import Attached, ContainerClient, Stdio
from support.conditions import TIMEOUT_SECONDS, eventually
from support.fake_containerd import RUNTIME_STATE, TASK_DIRECTORY
from support.limits import limit
from support.peers import FakePeer, Peer, RealPeer

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.real)])
def either(request: pytest.FixtureRequest) -> Peer:
    return FakePeer() if request.param == "fake" else RealPeer(request.getfixturevalue("workspace"))


@pytest.fixture
async def peer(either: Peer) -> AsyncIterator[Peer]:
    Keep.all.clear()
    yield either
    for keep in Keep.all:  # the caller that attached owns the readers
        with suppress(AttributeError):
            keep.stdio.close()


class Keep:
    """Keeps the streams and reads nothing by itself."""

    all: ClassVar[list["Keep"]] = []
    stdio: Stdio

    def __init__(self) -> None:
        self.all.append(self)

    async def __call__(self, stdio: Stdio) -> Attached:
        self.stdio = stdio
        return self

    async def wait(self) -> None:
        """Nothing is copied."""

    async def first(self) -> bytes:
        """What comes first on stdout."""
        return await self.stdio.stdout.read()

    async def text(self) -> tuple[bytes, bytes]:
        """Everything until both ends."""
        found = []
        for stream in (self.stdio.stdout, self.stdio.stderr):
            data = b""
            while more := await stream.read():
                data += more
            stream.close()
            found.append(data)
        return found[0], found[1]


async def run(peer: Peer, client: ContainerClient, id: str, **what: object) -> Keep:
    keep = Keep()
    spec = peer.spec(id, **what)  # type: ignore[arg-type]  # out, err and code, passed through
    await client.create(id, spec, peer.options, labels={"who": id})
    assert await client.start(id, "", False, keep) > 0
    return keep


async def next_event(client: ContainerClient, matches: Callable[[Event], bool], do: Callable[[], object]) -> Event:
    with anyio.fail_after(TIMEOUT_SECONDS):
        async with client.events() as envelopes:
            await do()  # type: ignore[misc]  # every one is async
            async for envelope in envelopes:
                if matches(envelope.event):
                    return envelope.event
    raise AssertionError("unreachable")


async def remove(client: ContainerClient, *ids: str) -> None:
    for id in ids:
        await client.delete_task(id)
        await client.delete(id)


async def test_create_makes_a_record_with_labels_and_no_task(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options, labels={"who": "me"})
        assert (await client.labels("a"))["who"] == "me"
        with pytest.raises(errors.NotFound):
            await client.status("a")
        await client.delete("a")
        assert not await peer.left()


async def test_a_second_create_is_a_conflict_and_touches_nothing(peer: Peer) -> None:
    async with peer.client() as client, peer.client() as other:
        await client.create("a", peer.spec("a"), peer.options, labels={"who": "me"})
        for each in (client, other):
            with pytest.raises(errors.Conflict):
                await each.create("a", peer.spec("a"), peer.options, labels={"who": "you"})
        assert (await client.labels("a"))["who"] == "me"
        await client.start("a", "", False, Keep())
        await remove(client, "a")


@pytest.mark.parametrize("id", ["", ".", "..", "../a", "a/b", "a" * 77, "-a", "a b"])
async def test_an_id_that_is_none_is_invalid_and_makes_nothing(peer: Peer, id: str) -> None:
    async with peer.client() as client:
        with pytest.raises(errors.Invalid):
            await client.create(id, peer.spec("a"), peer.options)
        assert not await peer.left()


@pytest.mark.parametrize("id", ["", ".", "..", "../a", "a/b"])
async def test_deleting_an_invalid_id_deletes_no_other_directory(peer: Peer, id: str) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options)
        with pytest.raises(errors.Invalid):
            await client.delete(id)
        await client.start("a", "", False, Keep())  # its FIFOs need its directory
        await remove(client, "a")


async def test_a_missing_container_is_not_found_or_none(peer: Peer) -> None:
    async with peer.client() as client:
        for call in (
            client.status("a"),
            client.labels("a"),
            client.restore("a", Keep()),
            client.signal_process("a", "init", 9),
            client.start("a", "", False, Keep()),
            client.prepare("a", Keep()),
            client.start_prepared("a"),
        ):
            with pytest.raises(errors.NotFound):
                await call
        assert await client.delete_task("a") == (None, None)
        assert await client.oom_killed("a") is False
        await client.delete("a")


async def test_output_comes_whole_and_ends_with_the_process(peer: Peer) -> None:
    async with peer.client() as client:
        binary = bytes(range(256))
        keep = await run(peer, client, "a", out=binary, err=b"oh", code=3)
        with anyio.fail_after(TIMEOUT_SECONDS):
            assert await keep.text() == (binary, b"oh")
        await remove(client, "a")
        assert not await peer.left()


async def test_a_stopped_task_keeps_its_code_and_time_until_it_is_deleted(peer: Peer) -> None:
    async with peer.client() as client:
        before = datetime.now(UTC)
        exits = await next_event(client, lambda it: isinstance(it, TaskExit), lambda: run(peer, client, "a", code=3))
        assert isinstance(exits, TaskExit)
        assert await client.status("a") is Status.STOPPED
        assert not await client.oom_killed("a")
        code, exited_at = await client.delete_task("a")
        assert (code, exited_at) == (3, exits.exited_at)
        assert exited_at
        assert before - timedelta(seconds=1) <= exited_at <= datetime.now(UTC) + timedelta(seconds=1)
        with pytest.raises(errors.NotFound):
            await client.status("a")
        assert await client.delete_task("a") == (code, exited_at)
        assert (await client.labels("a"))["who"] == "a"
        await client.delete("a")
        assert await client.delete_task("a") == (None, None)
        await client.delete("a")
        assert not await peer.left()


async def until_stopped(client: ContainerClient, id: str) -> None:
    async def is_stopped() -> bool:
        return await client.status(id) is Status.STOPPED

    await eventually(is_stopped)


async def test_i17_the_exit_of_a_task_whose_status_was_stopped_is_found_while_it_exists(peer: Peer) -> None:
    async with peer.client() as client:
        for id, code in (("a", 3), ("b", 137)):
            await run(peer, client, id, code=code if id == "a" else None)
        await peer.end("b")
        for id, code in (("a", 3), ("b", 137)):
            await until_stopped(client, id)
            found = await client.find_exit(id)
            assert found
            assert found[0] == code
            assert found[1]
            assert abs(datetime.now(UTC) - found[1]) < timedelta(seconds=limit(30))
            assert await client.find_exit(id) == found
            assert await client.status(id) is Status.STOPPED
            assert await client.delete_task(id) == found
            await client.delete(id)
            assert await client.find_exit(id) is None
        assert not await peer.left()


async def test_i17_no_exit_is_found_of_what_is_missing_not_started_or_running(peer: Peer) -> None:
    async with peer.client() as client:
        assert await client.find_exit("a") is None
        await client.create("a", peer.spec("a"), peer.options)
        assert await client.find_exit("a") is None
        await client.start("a", "", False, Keep())
        assert await client.status("a") is Status.RUNNING
        assert await client.find_exit("a") is None
        await remove(client, "a")


async def test_i17_no_exit_is_found_while_another_process_of_the_container_may_run(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.with_host_pids("a", code=3), peer.options)
        await client.start("a", "", False, Keep())
        await until_stopped(client, "a")
        assert await client.find_exit("a") is None
        assert (await client.delete_task("a"))[0] == 3
        await client.delete("a")
        assert not await peer.left()


async def test_i17_the_exit_of_an_earlier_run_is_not_found_for_the_next_one_of_its_id(peer: Peer) -> None:
    async with peer.client() as client:
        await run(peer, client, "a", code=3)
        await until_stopped(client, "a")
        assert await client.find_exit("a")
        await remove(client, "a")
        await run(peer, client, "a")
        assert await client.find_exit("a") is None
        await remove(client, "a")


async def test_i17_the_next_process_finds_the_exit_of_what_it_restored(peer: Peer) -> None:
    async with peer.client() as client:
        (await run(peer, client, "a")).stdio.close()
    async with peer.client() as client:
        keep = Keep()
        assert (await client.restore("a", keep))[0]
        assert await client.find_exit("a") is None
        await peer.end("a")
        await until_stopped(client, "a")
        found = await client.find_exit("a")
        assert found
        assert found[0] == 137
        keep.stdio.close()
        await remove(client, "a")


async def test_i17_a_known_exit_is_found_without_containerd(peer: Peer) -> None:
    async with peer.client() as client:
        await run(peer, client, "a", code=3)
        await until_stopped(client, "a")
        found = await client.find_exit("a")
        await peer.go_down()
        assert found
        assert await client.find_exit("a") == found
        await peer.come_up()
        await remove(client, "a")


async def test_e15_a_prepared_task_is_created_runs_when_started_and_has_its_output(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a", out=b"out", err=b"err", code=3), peer.options)
        keep = Keep()
        pid = await client.prepare("a", keep)
        assert pid > 0
        assert await client.status("a") is Status.CREATED
        assert await client.find_exit("a") is None
        assert await client.start_prepared("a") == pid
        assert await keep.text() == (b"out", b"err")
        assert (await client.delete_task("a"))[0] == 3
        await client.delete("a")
        assert not await peer.left()


async def test_e16_a_prepared_task_is_removed_as_any_other(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options)
        keep = Keep()
        await client.prepare("a", keep)
        with pytest.raises(errors.Conflict):
            await client.delete("a")
        await remove(client, "a")
        assert await keep.text() == (b"", b"")
        assert not await peer.left()


async def test_e17_a_prepared_task_whose_process_exited_is_not_started(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options)
        await client.prepare("a", Keep())
        await next_event(client, lambda it: isinstance(it, TaskExit), lambda: peer.end("a"))
        with pytest.raises(errors.MoorageError):
            await client.start_prepared("a")
        await remove(client, "a")
        assert not await peer.left()


async def test_e18_the_next_process_finds_a_prepared_task_not_alive_and_removes_it(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options)
        await client.prepare("a", Keep())
    async with peer.client() as client:
        alive, _ = await client.restore("a", Keep())
        assert not alive
        assert await client.status("a") is Status.CREATED
        await remove(client, "a")


async def test_events_report_start_and_exit_with_the_pid(peer: Peer) -> None:
    async with peer.client() as client:
        started = await next_event(client, lambda it: isinstance(it, TaskStarted), lambda: run(peer, client, "a"))
        assert isinstance(started, TaskStarted)
        exited = await next_event(client, lambda it: isinstance(it, TaskExit), lambda: peer.end("a"))
        assert exited == TaskExit("a", "a", started.pid, 137, exited.exited_at)  # type: ignore[union-attr]  # narrowed
        await remove(client, "a")


async def test_a_command_that_is_missing_fails_by_name_every_time_and_leaves_nothing(peer: Peer) -> None:
    async with peer.client() as client:
        for _ in range(2):
            keep = Keep()
            await client.create("a", peer.missing("a"), peer.options)
            with pytest.raises(errors.MoorageError, match="/missing/command") as caught:
                await client.start("a", "", False, keep)
            assert type(caught.value) is errors.MoorageError
            assert not hasattr(keep, "stdio")
            await remove(client, "a")
            assert not await peer.left()


async def test_what_attach_raises_comes_out_and_the_readers_are_closed(peer: Peer) -> None:
    streams: list[Stdio] = []

    async def refuse(stdio: Stdio) -> Attached:
        streams.append(stdio)
        raise LookupError("not me")

    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options)
        with pytest.raises(LookupError, match="not me"):
            await client.start("a", "", False, refuse)
        with pytest.raises(anyio.ClosedResourceError):
            await streams[0].stdout.read()
        assert await client.status("a") is Status.CREATED
        await remove(client, "a")
        assert not await peer.left()


async def test_a_checkpoint_or_an_input_is_unsupported(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options)
        for checkpoint, with_stdin in (("/somewhere", False), ("", True)):
            with pytest.raises(errors.Unsupported):
                await client.start("a", checkpoint, with_stdin, Keep())
        await client.delete("a")


async def test_a_running_task_is_killed_by_delete_task_and_protected_from_delete(peer: Peer) -> None:
    async with peer.client() as client:
        keep = await run(peer, client, "a", out=b"hello")
        with anyio.fail_after(TIMEOUT_SECONDS):
            assert await keep.first() == b"hello"
        with pytest.raises(errors.Conflict):
            await client.delete("a")
        assert await client.status("a") is Status.RUNNING
        code, _ = await client.delete_task("a")
        assert code == 137
        with anyio.fail_after(TIMEOUT_SECONDS):
            assert await keep.text() == (b"", b"")
        await client.delete("a")
        assert not await peer.left()


async def test_a_signal_reaches_init_and_one_to_the_dead_is_not_found(peer: Peer) -> None:
    async with peer.client() as client:
        await run(peer, client, "a")
        await client.signal_process("a", "init", 0)
        with pytest.raises(errors.NotFound):
            await client.signal_process("a", "another", signal.SIGKILL)
        exited = await next_event(
            client,
            lambda it: isinstance(it, TaskExit),
            lambda: client.signal_process("a", "init", signal.SIGKILL),
        )
        assert isinstance(exited, TaskExit)
        assert exited.code == 137
        with pytest.raises(errors.NotFound):
            await client.signal_process("a", "init", signal.SIGKILL)
        await remove(client, "a")


async def test_the_next_process_restores_a_running_task_with_what_it_wrote(peer: Peer) -> None:
    async with peer.client() as client:
        keep = Keep()
        await client.create("a", peer.spec("a", out=b"nobody read this"), peer.options)
        pid = await client.start("a", "", False, keep)
        keep.stdio.close()
    async with peer.client() as client:
        keep = Keep()
        assert await client.restore("a", keep) == (True, pid)
        with anyio.fail_after(TIMEOUT_SECONDS):
            assert await keep.stdio.stdout.read() == b"nobody read this"
        keep.stdio.close()
        await remove(client, "a")
        assert not await peer.left()


async def test_restoring_a_stopped_task_attaches_and_says_that_it_is_not_alive(peer: Peer) -> None:
    async with peer.client() as client:
        keep = Keep()

        async def go() -> None:
            await run(peer, client, "a", code=4)

        await next_event(client, lambda it: isinstance(it, TaskExit), go)
        alive, _ = await client.restore("a", keep)
        assert not alive
        keep.stdio.close()
        assert (await client.delete_task("a"))[0] == 4
        await client.delete("a")


async def test_restoring_without_record_task_or_fifo_is_not_found(peer: Peer) -> None:
    async with peer.client() as client:
        await client.create("a", peer.spec("a"), peer.options)
        keep = await run(peer, client, "b")
        await peer.remove_fifos("b")
        for id in ("a", "b", "c"):
            with pytest.raises(errors.NotFound):
                await client.restore(id, Keep())
        keep.stdio.close()
        await remove(client, "a", "b")
        assert not await peer.left()


async def test_a_hung_shim_says_unknown_and_cannot_be_restored(peer: Peer) -> None:
    async with peer.client() as client:
        await run(peer, client, "a")
        await peer.hang("a")
        keep = Keep()
        try:
            assert await client.status("a") is Status.UNKNOWN
            with pytest.raises(errors.Unavailable):
                await client.restore("a", keep)
            with pytest.raises(errors.Conflict):
                await client.delete("a")
        finally:
            await peer.go_on("a")
        with pytest.raises(anyio.ClosedResourceError):
            await keep.stdio.stdout.read()
        assert await client.status("a") is Status.RUNNING
        await remove(client, "a")


@pytest.mark.parametrize("what", [TASK_DIRECTORY, RUNTIME_STATE])
async def test_what_an_earlier_task_left_is_a_conflict_once(peer: Peer, what: str) -> None:
    async with peer.client() as client:
        await peer.leave("a", what)
        await client.create("a", peer.spec("a", out=b"x"), peer.options)
        with pytest.raises(errors.Conflict):
            await client.start("a", "", False, Keep())
        assert await client.start("a", "", False, Keep()) > 0
        await remove(client, "a")
        assert not await peer.left()


async def test_state_that_the_runtime_left_goes_with_the_task(peer: Peer) -> None:
    async with peer.client() as client:
        await peer.leave("a", RUNTIME_STATE)
        await remove(client, "a")
        assert not await peer.left()


async def test_a_task_whose_record_is_missing_is_still_seen_and_can_be_deleted(peer: Peer) -> None:
    async with peer.client() as client:
        await run(peer, client, "a")
        await peer.leave_task("a")
        assert await client.status("a") is Status.RUNNING
        assert (await client.delete_task("a"))[0] == 137
        await client.delete("a")
        assert not await peer.left()


async def test_a_task_below_a_new_record_is_a_conflict_until_it_is_deleted(peer: Peer) -> None:
    async with peer.client() as client:
        await run(peer, client, "a")
        await peer.leave_task("a")
    async with peer.client() as client:
        await client.delete_task("a")
        await client.delete("a")
        await run(peer, client, "a")
        await peer.leave_task("a")
        await peer.remove_fifos("a")
    async with peer.client() as client:
        with pytest.raises(errors.Conflict):
            await client.create("a", peer.spec("a"), peer.options)
        assert (await client.delete_task("a"))[0] == 137
        await client.delete("a")
        assert not await peer.left()


async def test_with_containerd_unavailable_everything_is_unavailable_and_the_same_client_works_afterwards(
    peer: Peer,
) -> None:
    async with peer.client() as client:
        keep = await run(peer, client, "a")
        async with client.events() as envelopes:
            await peer.go_down()
            with pytest.raises(errors.Unavailable):
                await anext(envelopes)
        for call in (
            client.status("a"),
            client.labels("a"),
            client.delete_task("a"),
            client.delete("a"),
            client.oom_killed("a"),
            client.signal_process("a", "init", 9),
            client.restore("a", Keep()),
            client.create("b", peer.spec("b"), peer.options),
        ):
            with pytest.raises(errors.Unavailable):
                await call
        with pytest.raises(errors.Unavailable):
            await client.events().__aenter__()
        await peer.come_up()
        assert await client.status("a") is Status.RUNNING
        assert await peer.labels_of("b") is None
        keep.stdio.close()
        await remove(client, "a", "b")
        assert not await peer.left()


async def test_every_subscriber_hears_everything_from_the_moment_of_entering(peer: Peer) -> None:
    async with peer.client() as client, peer.client() as other, client.events() as first, other.events() as second:
        await run(peer, client, "a", code=0)
        with anyio.fail_after(TIMEOUT_SECONDS):
            for envelopes in (first, second):
                kinds: list[type[Event]] = []
                while TaskExit not in kinds:
                    envelope = await anext(envelopes)
                    assert envelope.namespace
                    kinds.append(type(envelope.event))
                assert TaskStarted in kinds
        await remove(client, "a")
