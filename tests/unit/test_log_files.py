"""Output in files: stamped, bounded, rotated, read from the end, followed."""

import os
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.logs.reader import Line, LogTotals, PluginLog
from moorage.logs.writer import LINE_LIMIT, STREAMS, LineStream, LogWriter
from support.limits import limit

pytestmark = pytest.mark.anyio


class Log(PluginLog):
    """Both sides of one log."""

    def __init__(self, directory: Path, *, most_bytes: int = 10 * 1024 * 1024, files: int = 3) -> None:
        super().__init__(directory, most_bytes=most_bytes, files=files)
        self._writer = LogWriter(str(directory), most_bytes=most_bytes, files=files)
        self.streams = {name: LineStream(self._writer, name) for name in STREAMS}

    def append(self, stream: str, data: bytes) -> None:
        self.streams[stream].take(data)

    def close(self) -> None:
        for stream in self.streams.values():
            stream.end()
        self._writer.close()


async def read(log: PluginLog, tail: int | None = None, since: datetime | None = None) -> list[Line]:
    async with log.read(tail=tail, since=since) as lines:
        return [line async for line in lines]


async def texts(log: PluginLog, tail: int | None = None) -> list[str]:
    return [line.text for line in await read(log, tail)]


async def test_case_030_lines_have_a_time_and_a_stream(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    started_at = datetime.now(UTC)
    log.append("stdout", b"a\n")
    log.append("stderr", b"b\r\n")
    lines = await read(log)
    assert [(line.stream, line.text) for line in lines] == [("stdout", "a"), ("stderr", "b")]
    assert all(started_at <= line.at <= datetime.now(UTC) for line in lines)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "log/current").stat().st_mode & 0o777 == 0o600
    log.close()


async def test_case_030_another_process_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append("stdout", b"first\n")
    with (tmp_path / "current").open("ab") as file:
        file.write(b"2026-01-01T00:00:00.000000+00:00 std")  # killed within a record
    again = Log(tmp_path)
    again.append("stdout", b"second\n")
    assert await texts(again) == ["first", "second"]
    log.close()
    again.close()


async def test_a_line_is_whole_whatever_the_pieces_it_comes_in(tmp_path: Path) -> None:
    log = Log(tmp_path)
    for piece in (b"on", b"e\ntw", b"o\n\n", b"rest"):
        log.append("stdout", piece)
    assert await texts(log) == ["one", "two", ""]
    log.streams["stdout"].end()
    assert await texts(log) == ["one", "two", "", "rest"]
    assert [line.text for line in log.last_lines(2)] == ["", "rest"]
    log.close()


async def test_case_223_a_long_line_is_stored_in_pieces_and_read_as_one(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append("stdout", b"x" * (3 * LINE_LIMIT + 5))
    log.append("stdout", b"\n")
    assert await texts(log) == ["x" * (3 * LINE_LIMIT + 5)]
    assert (tmp_path / "current").read_bytes().count(b" stdout+ ") == 3
    log.close()


async def test_bytes_that_are_no_text_are_shown(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append("stdout", b"\xff\x00\n")
    assert await texts(log) == ["\\xff\x00"]
    log.close()


async def test_a_flood_stays_below_the_cap_and_the_newest_is_stored(tmp_path: Path) -> None:
    log = Log(tmp_path, most_bytes=300_000, files=3)
    for number in range(500):
        log.append("stdout", b"".join(b"%06d\n" % (number * 100 + each) for each in range(100)))
        assert sum(file.stat().st_size for file in os.scandir(tmp_path)) < 320_000
    found = await texts(log)
    assert found == [f"{number:06d}" for number in range(50_000 - len(found), 50_000)]
    assert len(found) > 3000
    assert set(os.listdir(tmp_path)) == {"current", "1", "2", "counts"}
    log.close()


@given(st.lists(st.lists(st.integers(0, 3000), max_size=20), max_size=12), st.integers(0, 60))
async def test_the_tail_is_the_end_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, writes: list[list[int]], count: int
) -> None:
    log = Log(tmp_path_factory.mktemp("log"), most_bytes=60_000, files=3)
    for write in writes:
        log.append("stdout", b"".join(b"%d-%s\n" % (length, b"y" * length) for length in write))
    whole = await texts(log)
    assert await texts(log, count) == (whole[-count:] if count else [])
    log.close()


async def test_since_leaves_out_what_is_older(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.append("stdout", b"old\n")
    since = (await read(log))[-1].at
    await anyio.sleep(0.001)
    log.append("stdout", b"new\n")
    assert [line.text for line in await read(log, since=since)] == ["new"]
    log.close()


async def test_a_follower_sees_every_line_over_rotations(tmp_path: Path) -> None:
    log = Log(tmp_path, most_bytes=30_000, files=3)
    found: list[str] = []

    async def follow() -> None:
        async with log.read(tail=0, follow=True) as lines:
            started.set()
            async for line in lines:
                found.append(line.text)
                if line.text == "end":
                    return

    started = anyio.Event()
    log.append("stdout", b"before\n")
    with anyio.fail_after(limit(10)):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            await started.wait()
            for number in range(400):
                log.append("stdout", b"%d %s\n" % (number, b"z" * 100))
                await anyio.sleep(0.001)
            log.append("stdout", b"end\n")
    assert [text.split()[0] for text in found] == [*map(str, range(400)), "end"]
    log.close()


async def test_a_follower_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    log = Log(tmp_path / "later")
    with anyio.fail_after(limit(5)):
        async with anyio.create_task_group() as tasks, log.read(follow=True) as lines:
            tasks.start_soon(anyio.sleep, 0)
            await anyio.wait_all_tasks_blocked()
            log.append("stdout", b"here\n")
            assert (await anext(aiter(lines))).text == "here"
    log.close()


async def test_a_disk_that_takes_nothing_drops_lines_and_says_how_many(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    (tmp_path / "log").write_text("in the way")
    log.append("stdout", b"a\nb\n")
    (tmp_path / "log").unlink()
    log.append("stdout", b"c\n")
    assert await texts(log) == ["moorage: 2 lines were dropped: File exists", "c"]
    assert log.totals() == LogTotals({"stdout": 6, "stderr": 0}, dropped_lines=2)
    log.close()


async def test_counts_go_on_over_writers_and_are_there_before_the_line_has_its_end(tmp_path: Path) -> None:
    assert PluginLog(tmp_path / "none").totals() == LogTotals({"stdout": 0, "stderr": 0}, dropped_lines=0)
    for before in (0, 5):
        log = Log(tmp_path)
        log.append("stdout", b"ab")
        log.append("stderr", b"a\nb")
        assert log.totals() == LogTotals({"stdout": before + 2, "stderr": before + 3}, dropped_lines=0)
        log.append("stdout", b"c\nd")
        log.append("stderr", b"\n\n")
        log.close()
        assert log.totals() == LogTotals({"stdout": before + 5, "stderr": before + 5}, dropped_lines=0)


async def test_counts_go_on_over_rotations_and_closed_files(tmp_path: Path) -> None:
    log = Log(tmp_path, most_bytes=300)
    for number in range(1, 31):
        log.append("stdout", b"0123456789\n")
        if number % 10 == 0:
            log.close()
        assert log.totals() == LogTotals({"stdout": 11 * number, "stderr": 0}, dropped_lines=0)
    assert (tmp_path / "2").exists()
    log.close()


async def test_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    log = Log(tmp_path)
    log.append("stdout", b"a\n")
    await read(log)
    log.last_lines(3)
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_case_223_a_record_that_is_being_written_is_not_lost_to_a_follower(tmp_path: Path) -> None:
    """A reader never begins inside a record, whether lines come before it or not."""
    record = b"2026-01-01T00:00:00.000000+00:00 stdout text\n"
    for before, tail in ((b"", 1), (b"", 0), (record, 0), (record, 1)):
        path = tmp_path / "current"
        for cut in range(len(record)):
            path.write_bytes(before + record[:cut])
            async with PluginLog(tmp_path).read(tail=tail) as lines:  # it has found where to begin
                with path.open("ab") as file:
                    file.write(record[cut:])
                assert "text" in [line.text async for line in lines], (before, tail, cut)


@pytest.mark.parametrize("half", [b"2026-01-01T00:00", b"\0" * 40, b"no time"])
def test_case_223_a_record_after_half_of_another_hides_no_line(tmp_path: Path, half: bytes) -> None:
    record = b"2026-01-01T00:00:00.000000+00:00 stdout %b\n"
    (tmp_path / "current").write_bytes(record % b"whole" + half + record % b"spoilt")
    assert [line.text for line in PluginLog(tmp_path).last_lines(1)] == ["whole"]
