"""The kit's log driver on real FIFOs: both sides come and go, and no line is lost or read twice."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage.kit import ContainerInfo, LogDriver, LogEntry, LogReader, encode_frame
from moorage.kit.drivers.log import LogFile, StartLogging
from support.foreground import wait_until


class Lines:
    """Collects lines."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.fail = False

    def __call__(self, entry: LogEntry) -> None:
        if self.fail:
            raise OSError("disk full")
        self.found.append(entry.line.decode())


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def write(fifo: Path, *lines: str) -> None:
    """As a dockerd that opens the FIFO, writes and closes it."""
    with fifo.open("wb") as file:
        file.write(b"".join(encode_frame(LogEntry(line.encode())) for line in lines))


def is_finished() -> Callable[[], bool]:
    before = threading.active_count()
    return lambda: threading.active_count() < before


def test_a_reader_reads_on_when_the_writer_is_another_one(fifo: Path) -> None:
    lines = Lines()
    reader = LogReader(fifo, lines)
    reader.start()
    write(fifo, "a", "b")
    wait_until(lambda: lines.found == ["a", "b"], "the first lines")
    write(fifo, "c")
    wait_until(lambda: lines.found == ["a", "b", "c"], "the line of the second writer")
    reader.stop()
    assert lines.found == ["a", "b", "c"]


def test_stop_returns_after_the_last_line(fifo: Path) -> None:
    lines = Lines()
    reader = LogReader(fifo, lines)
    reader.start()
    with fifo.open("wb") as file:
        for number in range(1000):
            file.write(encode_frame(LogEntry(b"%d" % number)))
        file.flush()
        reader.stop()
        assert lines.found == [str(number) for number in range(1000)]


def test_a_reader_without_a_writer_waits_and_stops(fifo: Path) -> None:
    reader = LogReader(fifo, Lines())
    reader.start()
    check = is_finished()
    reader.stop()
    assert check()


def test_a_reader_ends_when_its_fifo_is_removed(fifo: Path) -> None:
    lines = Lines()
    reader = LogReader(fifo, lines)
    reader.start()
    check = is_finished()
    with fifo.open("wb") as file:
        file.write(encode_frame(LogEntry(b"a")))
        fifo.unlink()
    wait_until(check, "the thread ends")
    assert lines.found == ["a"]


def test_a_line_that_cannot_be_stored_does_not_end_the_reader(fifo: Path) -> None:
    lines = Lines()
    lines.fail = True
    reader = LogReader(fifo, lines)
    reader.start()
    write(fifo, "lost")
    lines.fail = False
    write(fifo, "stored")
    wait_until(lambda: "stored" in lines.found, "the second line")
    reader.stop()


def test_a_path_without_a_fifo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LogReader(tmp_path / "none", Lines()).start()


class Collector(LogDriver):
    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self.lines: list[tuple[str, str]] = []
        self.finished: list[str] = []

    def write(self, info: ContainerInfo, entry: LogEntry) -> None:
        self.lines.append((info.container_id, entry.line.decode()))

    def closed(self, info: ContainerInfo) -> None:
        self.finished.append(info.container_id)


def test_streams_are_read_again_by_the_next_process(fifo: Path, tmp_path: Path) -> None:
    first = Collector(tmp_path / "state/streams.json")
    first.start()
    first.start_logging(StartLogging(str(fifo), ContainerInfo({"tag": "t"}, "c1")))
    keep = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)  # dockerd, which does not notice that the plugin is killed
    try:
        os.write(keep, encode_frame(LogEntry(b"before")))
        wait_until(lambda: first.lines == [("c1", "before")], "the line before")
        first.stop()  # as a kill, it leaves the file; and the thread ends
        half = encode_frame(LogEntry(b"split"))
        os.write(keep, half[5:] + encode_frame(LogEntry(b"after")))
        second = Collector(tmp_path / "state/streams.json")
        second.start()
        wait_until(lambda: second.lines == [("c1", "after")], "the line after")
        second.stop_logging(LogFile(str(fifo)))
        second.stop_logging(LogFile(str(fifo)))
        assert second.finished == ["c1"]
    finally:
        os.close(keep)
    third = Collector(tmp_path / "state/streams.json")
    third.start()
    assert third._readers == {}


def test_a_second_start_of_the_same_stream_reads_it_once(fifo: Path, tmp_path: Path) -> None:
    driver = Collector(tmp_path / "streams.json")
    for _ in range(2):  # dockerd was restarted
        driver.start_logging(StartLogging(str(fifo), ContainerInfo(container_id="c")))
    write(fifo, "once")
    wait_until(lambda: driver.lines == [("c", "once")], "the line")
    driver.stop()
    assert driver.lines == [("c", "once")]
