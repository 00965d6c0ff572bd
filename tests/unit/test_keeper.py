"""The log keeper without a process: its requests and answers, how it stamps, splits, rotates and drops, its rate."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.logs.keeper import _LONGEST, _SHORTEST, _ReadPause
from moorage.logs.keeper_protocol import GREETING, MAGIC, PACKET_BYTES, QUIT, KeeperRequest, pack, parse_request, unpack
from moorage.logs.writer import LINE_LIMIT, LineStream, LogWriter, Piece

RECORD = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00 (stdout|stderr)(\+?) (.*)")


class Memory(LogWriter):
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("/nowhere", most_bytes=1, files=1)
        self.written = b""

    def write(self, records: Sequence[Piece]) -> None:
        self.written += b"".join(records)

    def records(self) -> list[tuple[bytes, bytes]]:
        """Mark and text of each record; all of them are stamped, and end."""
        assert self.written.endswith(b"\n") or not self.written
        found = []
        for line in self.written.split(b"\n")[:-1]:
            match = RECORD.fullmatch(line)
            assert match, line
            found.append((match[2], match[3]))
        return found


# ---- what is said


def test_requests_are_read_as_they_were_written() -> None:
    sent = KeeperRequest("A", "id.run", "/var/log dir/ü", 1000, 3)
    assert parse_request(pack(*sent)) == sent
    assert parse_request(pack("F", "id.run")) == KeeperRequest("F", "id.run")
    assert parse_request(QUIT) == KeeperRequest("Q")
    assert unpack(pack("r", "key", "why not")) == ("r", ["key", "why not"])


def test_a_path_that_is_no_text_and_the_longest_one_come_through() -> None:
    for path in (os.fsdecode(b"/\xff\xfe"), "/" + "x" * 4095):
        packet = pack("A", "k" * 255, path, 2**40, 100)
        assert len(packet) < PACKET_BYTES
        assert parse_request(packet).directory == path


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_happens(packet: bytes) -> None:
    try:
        request = parse_request(packet)
    except ValueError:
        return
    assert request.verb in "AFQ"


@pytest.mark.parametrize(
    "packet",
    [b"", b"X", b"F", b"Fa\0b", b"QQ", b"Ak\0/d\0001", b"A\0/d\0001\0001", b"Ak\0d\0001\0001",
     b"Ak\0/d\0000\0001", b"Ak\0/d\0001\0000", b"Ak\0/d\0001\0001000000000", b"Ak\0/d\000x\0001"],
)  # fmt: skip
def test_a_request_with_a_flaw_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_request(packet)


def test_what_no_version_may_change() -> None:
    assert (MAGIC, QUIT) == (b"moorage log keeper ", b"Q")
    assert len(GREETING) == len(MAGIC) + 1


# ---- stamping and splitting


@given(st.lists(st.binary(max_size=300)), st.booleans())
def test_every_byte_is_stored_in_order_whatever_the_chunks(pieces: list[bytes], flush: bool) -> None:
    out = Memory()
    stream = LineStream(out, "stdout")
    for piece in pieces:
        stream.take(piece)
        if flush:
            stream.flush()
    stream.end()
    stream.end()
    joined = b"".join(text + (b"" if mark else b"\n") for mark, text in out.records())
    assert joined.removesuffix(b"\n") == b"".join(pieces).removesuffix(b"\n")


@given(
    st.lists(st.integers(0, 3 * LINE_LIMIT), min_size=1, max_size=5),
    st.lists(st.integers(1, 2 * LINE_LIMIT), min_size=1, max_size=6),
)
def test_no_record_is_longer_than_the_limit(lengths: list[int], cuts: list[int]) -> None:
    lines = [bytes([97 + number % 26]) * length for number, length in enumerate(lengths)]
    data, workspace, number = b"\n".join(lines) + b"\n", 0, 0
    out = Memory()
    stream = LineStream(out, "stdout")
    cuts = [*cuts, LINE_LIMIT]  # never only small ones, which would be a million
    while workspace < len(data):
        cut = cuts[number % len(cuts)]
        stream.take(data[workspace : workspace + cut])
        workspace, number = workspace + cut, number + 1
    assert max(len(text) for _, text in out.records()) <= LINE_LIMIT
    whole = b"".join(text + (b"" if mark else b"\n") for mark, text in out.records())
    assert whole == data


def test_a_character_is_not_cut_in_two() -> None:
    out = Memory()
    stream = LineStream(out, "stderr")
    text = "x" + "€" * LINE_LIMIT
    stream.take(text.encode())
    stream.end()
    assert "".join(piece.decode() for _, piece in out.records()) == text
    assert len(out.records()) > 2


def test_both_streams_are_distinguished_and_wait_for_their_own_ends() -> None:
    out = Memory()
    stdout, stderr = LineStream(out, "stdout"), LineStream(out, "stderr")
    stdout.take(b"on")
    stderr.take(b"other\n")
    stdout.take(b"e\n")
    assert [line.split(b" ")[1:] for line in out.written.splitlines()] == [[b"stderr", b"other"], [b"stdout", b"one"]]


# ---- files


def test_one_file_alone_is_bounded_too(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path), most_bytes=1000, files=1)
    for number in range(100):
        writer.write([b"%099d\n" % number])
    assert (tmp_path / "current").stat().st_size <= 1000
    assert (tmp_path / "current").read_bytes().endswith(b"99\n")
    writer.close()


def test_a_rotation_continues_where_a_file_was_removed(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), most_bytes=300, files=3)
    for number in range(48):
        writer.write([b"%049d\n" % number])
        if number % 7 == 0:
            for path in (tmp_path / "log").iterdir():
                path.unlink()
        if number == 28:
            (tmp_path / "log").rmdir()  # and the writer makes it again
    assert (tmp_path / "log" / "current").read_bytes().endswith(b"47\n")
    writer.close()


def test_no_file_replaces_another_because_the_disk_would_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[tuple[str, bool]] = []
    rename = os.rename

    def watched(old: str, new: str) -> None:
        renamed.append((os.path.basename(new), os.path.exists(new)))
        rename(old, new)

    monkeypatch.setattr(os, "rename", watched)
    writer = LogWriter(str(tmp_path), most_bytes=300, files=3)
    for number in range(8):
        writer.write([b"%099d\n" % number])
    writer.close()
    assert renamed == [("1", False), *[("2", False), ("1", False)] * 6]


def test_a_rotation_that_was_cut_off_loses_nothing_when_it_is_made_up_for(tmp_path: Path) -> None:
    for name in ("current", "2"):
        (tmp_path / name).write_bytes(b"x" * 99 + b"\n")
    writer = LogWriter(str(tmp_path), most_bytes=300, files=3)
    writer.write([b"new\n"])
    writer.close()
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "current"]


# ---- rate


def test_little_is_waited_for_longer_and_much_not_at_all() -> None:
    rate = _ReadPause()
    pauses = [rate.after(128) for _ in range(20)]
    assert pauses[0] == _SHORTEST
    assert pauses[-1] == _LONGEST
    assert [rate.after(300_000) for _ in range(4)][-1] == 0.0


# ---- size


def test_the_keeper_imports_nothing_that_is_large() -> None:
    program = "import sys, moorage.logs.keeper; print(*sorted(sys.modules))"
    source = Path(__file__).resolve().parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", program],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    own = {name.removeprefix("moorage") for name in loaded if name.startswith("moorage")}
    assert own == {"", "._version", ".logs", ".logs.keeper", ".logs.keeper_protocol", ".logs.targets", ".logs.writer"}
    large = ("anyio", "asyncio", "aiohttp", "msgspec", "logging", "subprocess", "inspect", "json", "pathlib")
    assert not set(loaded) & set(large)
