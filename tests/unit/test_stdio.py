"""The FIFOs of a task and their read ends, without a task."""

import os
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from moorage.containerd.stdio import READ_BYTES, FifoReader, TaskFifos, fifo_paths, make_fifos, open_stdio
from support.conditions import TIMEOUT_SECONDS, settled

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


@pytest.fixture
async def stdio(tmp_path: Path) -> AsyncIterator[TaskFifos]:
    make_fifos(tmp_path)
    stdio = open_stdio(tmp_path)
    yield stdio
    stdio.close()


def open_writer(reader: FifoReader) -> int:
    return os.open(reader.path, os.O_WRONLY | os.O_NONBLOCK)


async def test_e22_opening_waits_for_no_writer(tmp_path: Path) -> None:
    make_fifos(tmp_path)
    with anyio.fail_after(TIMEOUT_SECONDS):
        # in a thread that can be left behind, so that a fault fails the test and does not hang it
        stdio = await anyio.to_thread.run_sync(partial(open_stdio, tmp_path), abandon_on_cancel=True)
        assert await stdio.stdout.read() == b"", "as ended, before there is a writer"
    stdio.close()


def test_fifos_belong_to_whom_they_are_made_for_and_are_never_taken_over(tmp_path: Path) -> None:
    owner = (os.getuid(), os.getgid())
    make_fifos(tmp_path, uid=owner[0], gid=owner[1])
    for path in fifo_paths(tmp_path):
        found = path.stat()
        assert stat.S_ISFIFO(found.st_mode)
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o600)
    with pytest.raises(FileExistsError):
        make_fifos(tmp_path)


def test_a_missing_fifo_is_reported_and_leaves_no_descriptor(tmp_path: Path) -> None:
    make_fifos(tmp_path)
    (tmp_path / "stderr").unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        open_stdio(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_e10_bytes_come_in_order_until_the_last_writer_has_closed(stdio: TaskFifos) -> None:
    first, second = open_writer(stdio.stdout), open_writer(stdio.stdout)
    os.write(first, b"one,")
    os.write(second, b"two")
    os.close(first)
    assert await stdio.stdout.read(4) == b"one,"
    assert await stdio.stdout.read() == b"two"
    with anyio.move_on_after(0.01) as scope:
        await stdio.stdout.read()
    assert scope.cancelled_caught, "a writer is left"
    os.close(second)
    assert await stdio.stdout.read() == b""


async def test_e14_a_read_takes_no_more_than_its_share_of_a_full_pipe(stdio: TaskFifos) -> None:
    writer = open_writer(stdio.stderr)
    assert os.write(writer, bytes(READ_BYTES * 2)) >= READ_BYTES
    assert len(await stdio.stderr.read()) == READ_BYTES
    os.close(writer)


async def test_little_that_comes_all_the_time_is_gathered_and_nothing_of_it_is_lost(stdio: TaskFifos) -> None:
    writer = open_writer(stdio.stdout)
    sent = b"".join(b"%d," % number for number in range(200))
    taken = b""
    for number in range(200):
        os.write(writer, b"%d," % number)
        taken += await stdio.stdout.read()
    os.close(writer)
    assert await stdio.stdout.read() == b""
    assert taken == sent


async def test_closing_wakes_a_reader_that_waits_and_may_be_repeated(stdio: TaskFifos) -> None:
    writer = open_writer(stdio.stdout)
    woken = False

    async def read() -> None:
        nonlocal woken
        with pytest.raises(anyio.ClosedResourceError):
            await stdio.stdout.read()
        woken = True

    with anyio.fail_after(TIMEOUT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await settled()
            stdio.close()
    assert woken
    stdio.close()
    with pytest.raises(anyio.ClosedResourceError):
        stdio.stdout.fileno()
    os.close(writer)


def test_closing_outside_a_loop_works_and_keeps_no_descriptor(tmp_path: Path) -> None:
    make_fifos(tmp_path)
    reader = FifoReader(tmp_path / "stdout")
    descriptor = reader.fileno()
    reader.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
