"""What the commands of the engine say and send: times, tables, hosts, packages."""

import io
import os
import socket
import tarfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from moorage import errors
from moorage._lib.units import ago
from moorage.cli.cmd_create import package
from moorage.cli.parameters import parse_instant
from moorage.cli.terminal import table
from moorage.client import MoorageClient, socket_of


def test_l02_times_are_for_people() -> None:
    now = datetime.now(UTC)
    for seconds, text in (
        (0, "now"),
        (1.5, "1 second ago"),
        (59, "59 seconds ago"),
        (185, "3 minutes ago"),
        (7300, "2 hours ago"),
        (200_000, "2 days ago"),
        (-4.5, "in 4 seconds"),
    ):
        assert ago((now - timedelta(seconds=seconds)).isoformat()) == text
    assert ago(None) == ""


def test_l02_columns_are_as_wide_as_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    table(("A", "LONG"), [("aaaa", ""), ("b", "x")])
    assert capsys.readouterr().out == "A      LONG\naaaa\nb      x\n"


def test_since_takes_a_while_ago_or_a_time() -> None:
    then = float(parse_instant("1h30m", "--since"))
    assert abs(datetime.now(UTC).timestamp() - then - 5400) < 5
    assert parse_instant("1700000000.5", "--since") == "1700000000.5"
    assert parse_instant("2026-01-02T03:04:05+00:00", "--since").startswith("2026-01-0")
    assert parse_instant("", "--since") == ""
    with pytest.raises(errors.Invalid, match="neither a time nor a duration"):
        parse_instant("last week", "--since")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", 0),
        ("-10m", 600),
        ("2 hours ago", 7200),
        ("1 hour 30 min ago", 5400),
        ("-1h 5s", 3605),
        ("3days ago", 259200),
    ],
)
def test_h03_since_takes_what_journalctl_takes(text: str, seconds: float) -> None:
    assert abs(datetime.now(UTC).timestamp() - float(parse_instant(text, "--since")) - seconds) < 5


def test_h03_days_and_clocks_are_local() -> None:
    today, yesterday = (datetime.fromtimestamp(float(parse_instant(each, ""))) for each in ("today", "yesterday"))
    assert (today.hour, today.minute, (today.date() - yesterday.date()).days) == (0, 0, 1)
    at = datetime.fromtimestamp(float(parse_instant("14:30", "")))
    assert (at.date(), at.hour, at.minute, at.second) == (today.date(), 14, 30, 0)
    for wrong in ("25:00", "10 parsecs ago", "ago", "-"):
        with pytest.raises(errors.Invalid, match="neither a time nor a duration"):
            parse_instant(wrong, "--since")


@pytest.mark.parametrize(("host", "path"), [("unix:///a/b", "/a/b"), ("/a/b", "/a/b")])
def test_a_host_is_a_socket(host: str, path: str) -> None:
    assert socket_of(host) == path


@pytest.mark.parametrize("host", ["tcp://1.2.3.4:5", "unix://relative", ""])
def test_a_host_that_is_no_socket_is_refused(host: str) -> None:
    with pytest.raises(errors.Invalid, match="must be unix://"):
        socket_of(host)


def test_a_package_has_owners_links_and_attributes(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    (tmp_path / "config.json").write_text("{}")
    (root / "p").write_bytes(b"x" * 700_000)
    (root / "p").chmod(0o4755)
    os.link(root / "p", root / "hard")
    (root / "soft").symlink_to("/elsewhere")
    try:
        os.setxattr(root / "p", "user.note", b"\xff\x00yes")
    except OSError:
        pass  # a file system without them; the test on a real containerd has one
    raw = b"".join(package(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        entries = {entry.name: entry for entry in archive}
    assert set(entries) == {"config.json", "rootfs", "rootfs/p", "rootfs/hard", "rootfs/soft"}
    files = [entries["rootfs/p"], entries["rootfs/hard"]]
    assert sorted(entry.islnk() for entry in files) == [False, True]
    assert entries["rootfs/soft"].linkname == "/elsewhere"
    whole = next(entry for entry in files if not entry.islnk())
    assert (whole.mode & 0o7777, whole.size) == (0o4755, 700_000)
    if note := whole.pax_headers.get("SCHILY.xattr.user.note"):
        assert note.encode("utf-8", "surrogateescape") == b"\xff\x00yes"


def test_a_package_that_is_no_longer_read_ends_its_thread(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rootfs/big").write_bytes(os.urandom(20_000_000))
    before = threading.active_count()
    chunks = package(tmp_path)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        list(package(tmp_path))


def test_an_engine_that_refuses_early_is_reported(tmp_path: Path) -> None:
    """It answers and hangs up before it has read the package, as it does for a name that is taken."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def refuse() -> None:
        client, _ = listener.accept()
        client.recv(1000)
        body = b'{"message": "plugin x:latest already exists"}'
        client.sendall(b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.shutdown(socket.SHUT_RD)
        client.close()

    server = threading.Thread(target=refuse)
    server.start()
    with pytest.raises(errors.Conflict, match="already exists"):
        MoorageClient(str(path)).create("x", iter([b"y" * 100_000] * 200))
    server.join()
    listener.close()


def test_an_engine_that_is_not_running_is_reported_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="start it with: moorage serve"):
        MoorageClient(str(tmp_path / "none")).plugins()
