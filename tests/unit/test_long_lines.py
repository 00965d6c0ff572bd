"""Lines that are longer than a record: joined when they are read, counted as one, marked where they are cut."""

import tempfile
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.logs import tail as tail_module
from moorage.logs.lines import JOINED_BYTES, Line
from moorage.logs.writer import LINE_LIMIT, LineStream, LogWriter
from support.limits import limit
from unit.test_log_files import Log, read

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("size", [LINE_LIMIT, LINE_LIMIT + 1, 300_000, JOINED_BYTES - 1, JOINED_BYTES])
async def test_case_223_a_line_of_up_to_1_mib_is_one_line_and_one_of_the_tail(tmp_path: Path, size: int) -> None:
    log = Log(tmp_path)
    log.append("stdout", b"before\n" + b"x" * size + b"\n" + b"after\n")
    assert [(line.text, line.partial) for line in await read(log)] == [
        ("before", False),
        ("x" * size, False),
        ("after", False),
    ]
    assert [len(line.text) for line in await read(log, 2)] == [size, 5]
    assert [len(line.text) for line in log.last_lines(2)] == [size, 5]
    log.close()


async def test_case_223_a_longer_line_comes_in_marked_pieces_that_can_be_joined(tmp_path: Path) -> None:
    log = Log(tmp_path)
    text = "".join(f"{number:07d}é" for number in range(300_000))  # 2.7 MB
    log.append("stdout", b"before\n" + text.encode() + b"\n")
    log.append("stderr", b"beside\n")
    found = [line for line in await read(log) if line.stream == "stdout"]
    assert found[0].text == "before"
    assert "".join(line.text for line in found[1:]) == text
    assert [line.partial for line in found[1:]] == [True] * (len(found) - 2) + [False]
    assert all(len(line.text.encode()) <= JOINED_BYTES for line in found)
    assert "".join(line.text for line in await read(log, 2) if line.stream == "stdout") == text
    log.close()


async def test_case_223_a_line_across_two_keepers_is_one(tmp_path: Path) -> None:
    first = Log(tmp_path)
    first.append("stdout", b"half and ")
    first.streams["stdout"].flush()  # as a keeper does that stops
    second = Log(tmp_path)
    second.append("stdout", b"half\n")
    assert [line.text for line in await read(second)] == ["half and half"]
    first._writer.close()
    second.close()


async def test_case_223_a_beginning_without_an_end_is_shown_and_marked(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append("stderr", b"one\npanic: no")
    log.streams["stderr"].flush()
    assert [(line.text, line.partial) for line in log.last_lines(1)] == [("panic: no", True)]
    log.append("stderr", b" disk")
    log.streams["stderr"].end()
    assert [(line.text, line.partial) for line in await read(log)] == [("one", False), ("panic: no disk", False)]
    log.append("stderr", b"cut")
    log.streams["stderr"].flush()
    log.streams["stderr"].end()  # the run ended there: what the next one writes is another line
    log.append("stderr", b"next\n")
    assert [line.text for line in log.last_lines(2)] == ["cut", "next"]
    log.close()


@pytest.mark.parametrize("half", [b"2026-01-01T00:00:00.000000+00:00 stdout hal", b"x", b"2026"])
def test_case_223_half_a_record_at_the_end_hides_no_line(tmp_path: Path, half: bytes) -> None:
    log = Log(tmp_path)
    log.append("stdout", b"one\ntwo\n")
    log.close()
    with (tmp_path / "current").open("ab") as file:
        file.write(half)
    assert [line.text for line in log.last_lines(1)] == ["two"]
    again = Log(tmp_path)
    again.append("stdout", b"three\n")
    assert [line.text for line in again.last_lines(2)] == ["hal" if half.endswith(b"hal") else "two", "three"]
    again.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=40), st.booleans()), min_size=1, max_size=25
)


@given(steps=STEPS, block=st.integers(50, 200), most_bytes=st.sampled_from([600, 10**6]), count=st.integers(0, 30))
def test_case_223_the_tail_is_the_end_of_all_lines(
    steps: list[tuple[str, bytes, bool]], block: int, most_bytes: int, count: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        log = Log(Path(directory), most_bytes=most_bytes)
        for stream, data, is_flushed in steps:
            log.append(stream, data)
            if is_flushed:
                log.streams[stream].flush()
        log.close()

        async def check() -> tuple[list[Line], list[Line]]:
            return await read(log), await read(log, count)

        before, tail_module._BLOCK = tail_module._BLOCK, block
        try:
            lines, last = anyio.run(check)
            assert last == (lines[-count:] if count else [])
            assert log.last_lines(count) == last
        finally:
            tail_module._BLOCK = before


async def test_case_221_a_follower_ends_with_all_that_was_written(tmp_path: Path) -> None:
    log, finished = Log(tmp_path / "log"), anyio.Event()
    found: list[str] = []

    async def follow() -> None:
        async with log.read(follow=True, finished=finished) as lines:
            async for line in lines:
                found.append(line.text)  # noqa: PERF401 - each is checked as it comes

    with anyio.fail_after(limit(10)):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            log.append("stdout", b"one\n")
            while not found:
                await anyio.wait_all_tasks_blocked()
            log.append("stdout", b"two\nhalf")
            log.close()
            finished.set()
    assert found == ["one", "two", "half"]


async def test_case_221_a_log_that_nothing_was_written_to_ends_too(tmp_path: Path) -> None:
    log, finished = Log(tmp_path / "log"), anyio.Event()
    with anyio.fail_after(limit(10)):
        async with log.read(follow=True, finished=finished) as lines, anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, finished.set)
            assert [line async for line in lines] == []


def test_case_223_a_stream_remembers_that_a_piece_has_no_end(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path), most_bytes=10**6, files=2)
    stream = LineStream(writer, "stdout")
    stream.take(b"abc")
    stream.flush()
    stream.end()
    stream.end()
    writer.close()
    records = (tmp_path / "current").read_bytes().splitlines()
    assert [record.split(b" ", 2)[1:] for record in records] == [[b"stdout+", b"abc"], [b"stdout", b""]]
