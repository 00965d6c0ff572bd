"""Hostile plugins at the plugin proxy: what they answer harms neither their consumers nor other plugins."""

import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moorage.host.mounts import mount_placeholder, mount_state, unmount_all_below
from moorage.proxy.protocol import PathRule
from support.hostile_driver import answer, attacked, exchange, post
from support.limits import limit
from support.proxy_process import ProxyProcess, call, wait_until
from support.reaper import remove_mounts_at_exit

pytestmark = pytest.mark.real

UNTRUE = "/etc"
"""A path of the host that no answer has a right to."""


def go_reads(raw: bytes, *names: str) -> Any:
    """A field as Go programs read it: of several spellings and repetitions of a key, the last one that is not null."""

    def fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            folded, before = key.casefold(), made.get(key.casefold())
            if isinstance(before, dict) and isinstance(value, dict):
                made[folded] = before | value
            elif value is not None:
                made[folded] = value
        return made

    found = json.loads(raw, object_pairs_hook=fold)
    for name in names:
        found = found[0] if isinstance(found, list) else found
        found = found.get(name.casefold(), {})
    return found


@pytest.mark.parametrize(
    ("method", "body", "names"),
    [
        ("Mount", '{"Mountpoint": "%(good)s", "mountpoint": "/etc"}', ("Mountpoint",)),
        ("Mount", '{"mountPoint": "/etc", "MOUNTPOINT": "%(good)s", "mountpoint": "/etc"}', ("Mountpoint",)),
        ("Path", '{"Mountpoint": "/etc", "Mountpoint": null}', ("Mountpoint",)),
        ("Path", '{"Mountpoint": null, "mountpoint": "/etc"}', ("Mountpoint",)),
        ("Get", '{"Volume": {"Name": "v"}, "volume": {"Name": "v", "Mountpoint": "/etc"}}', ("Volume", "Mountpoint")),
        ("Get", '{"Volume": {"Mountpoint": "/etc"}, "Volume": {"Name": "v"}}', ("Volume", "Mountpoint")),
        ("Get", '{"Volume": {"Name": "v", "Mountpoint": "%(good)s", "mountpoint": "/etc"}}', ("Volume", "Mountpoint")),
        ("List", '{"Volumes": [], "Volume\\u017f": [{"Name": "v", "Mountpoint": "/etc"}]}', ("Volumes", "Mountpoint")),
    ],
)
def test_p07_no_second_spelling_of_a_path_gets_past_the_proxy(
    tmp_path: Path, method: str, body: str, names: tuple[str, ...]
) -> None:
    """Go takes keys in any letter case, and the last one: dockerd would bind what the proxy has not read."""
    good = tmp_path / "bad/inside/v"

    def answering(connection: socket.socket, *_: object) -> None:
        answer(connection, (body % {"good": good}).encode())

    with attacked(tmp_path, answering) as (_, _, path, _):
        good.mkdir()
        request = json.dumps({"Name": "v", "ID": "1"}).encode()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(limit(20))
            client.connect(path)
            head = f"POST /VolumeDriver.{method} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n"
            client.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
            answered = b""
            while piece := client.recv(65536):
                answered += piece
        raw = answered.partition(b"\r\n\r\n")[2]
        found = go_reads(raw, *names) or str(tmp_path)
        assert found.startswith(str(tmp_path)), raw


def test_p07_no_spelling_of_an_error_makes_a_failure_a_success(tmp_path: Path) -> None:
    bodies = iter((b'{"Err": "no", "err": ""}', b'{"err": "no"}', b'{"Err": null, "ERR": {"a": 1}}'))
    with attacked(tmp_path, lambda connection, *_: answer(connection, next(bodies))) as (_, _, path, _):
        assert [call(path, "VolumeDriver.Create", Name="v")[0] for _ in range(3)] == [500] * 3


@pytest.mark.parametrize(
    "inside",
    [
        "",
        ".",
        "/",
        "//",
        "inside/v",
        "..",
        "{inside}/../../..",
        "{inside}/v/../../../../../..",
        "{inside}/v\0",
        "{inside}/link",
        "{inside}/link/passwd",
        "{inside}2/v",
        "/proc/self/root/etc",
        "/etc",
        "{inside}/" + "a/" * 3000,
        "{inside}/" + "a" * 300,
        "{inside}/file",
        "{inside}/missing",
        "{other}",
    ],
)
def test_p07_a_path_that_is_not_the_plugins_directory_is_refused(tmp_path: Path, inside: str) -> None:
    top, other = tmp_path / "bad/inside", tmp_path / "good/inside"

    def answering(connection: socket.socket, target: str, _: bytes) -> None:
        path = inside.format(inside=top, other=other)
        answer(connection, {"Mountpoint": path} if target.endswith("Mount") else {})

    with attacked(tmp_path, answering) as (_, _, path, _):
        for each in (top / "v", tmp_path / "bad/inside2/v"):
            each.mkdir(parents=True)
        (top / "link").symlink_to(UNTRUE)
        (top / "file").touch()
        status, answered = call(path, "VolumeDriver.Mount", Name="v", ID="1")
        assert status == 500, answered
        assert not answered.get("Mountpoint")
        assert len(answered["Err"]) < 2200


def test_p07_a_newline_in_a_path_is_part_of_a_name(tmp_path: Path) -> None:
    strange = "v\n\x1b[2K etc\t\\040"

    def answering(connection: socket.socket, *_: object) -> None:
        answer(connection, {"Mountpoint": f"{tmp_path}/bad/inside/{strange}"})

    with attacked(tmp_path, answering) as (_, hostile, path, _):
        (hostile.inside / strange).mkdir()
        expected = (200, {"Mountpoint": f"{hostile.inside}/{strange}"})
        assert call(path, "VolumeDriver.Mount", Name="v", ID="1") == expected
        assert call(path, "VolumeDriver.Unmount", Name="v", ID="1")[0] == 200


def until_reported(proxy: ProxyProcess, action: str, count: int) -> None:
    """Return when the engine has so many reports of this."""
    while sum(action in each for each in proxy.reports) < count:
        proxy.receive()


@contextmanager
def swapping(directory: Path, target: str) -> Iterator[None]:
    """Replace a directory by a link and back for as long as the block lasts."""
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            directory.rename(f"{directory}.aside")
            directory.symlink_to(target)
            directory.unlink()
            os.rename(f"{directory}.aside", directory)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_p07_a_link_that_is_swapped_while_paths_are_compared_leads_nowhere(tmp_path: Path) -> None:
    def answering(connection: socket.socket, target: str, _: bytes) -> None:
        answer(connection, {"Mountpoint": f"{tmp_path}/bad/inside/a/v"} if target.endswith("Mount") else {})

    victim = tmp_path / "victim"
    (victim / "v").mkdir(parents=True)
    with attacked(tmp_path, answering) as (_, hostile, path, _):
        (hostile.inside / "a/v").mkdir(parents=True)
        with swapping(hostile.inside / "a", str(victim)):
            answers = [call(path, "VolumeDriver.Mount", Name="v", ID=str(number)) for number in range(60)]
        assert {status for status, _ in answers} <= {200, 500}
        assert {each.get("Mountpoint") for status, each in answers if status == 200} <= {f"{hostile.inside}/a/v"}
        assert not any(str(victim) in str(each) for _, each in answers)
        assert list(victim.iterdir()) == [victim / "v"]


RAW = {
    "nothing": b"",
    "no http": b"\x00\xff" * 1000,
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "status 999": b"HTTP/1.1 999 x\r\nContent-Length: 2\r\n\r\n{}",
    "status 101": b"HTTP/1.1 101 Switching\r\nUpgrade: tcp\r\nConnection: upgrade\r\n\r\n{}",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "nul in a header": b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
    "a length of a thousand digits": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "a length that never comes": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk of exabytes": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n{}",
    "a chunk extension without end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"x" * 200_000,
    "another encoding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    "a flood of headers": b"HTTP/1.1 200 OK\r\n"
    + b"".join(b"X-%d: y\r\n" % each for each in range(20_000))
    + b"\r\n{}",
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 500_000,
    "folded lines": b"HTTP/1.1 200 OK\r\nX: y\r\n" + b" z\r\n" * 40_000 + b"\r\n{}",
    "gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", list(RAW))
def test_p08_what_is_no_answer_is_an_error_of_one_sentence(tmp_path: Path, name: str) -> None:
    with attacked(tmp_path, lambda connection, *_: connection.sendall(RAW[name])) as (proxy, _, path, good):
        before = proxy.descriptors()
        for method in ("VolumeDriver.Create", "VolumeDriver.Get", "VolumeDriver.Mount"):
            status, answered = call(path, method, Name="v")
            assert status == 500
            assert answered["Err"]
            assert len(answered["Err"]) < 2200
        # the head of a stream's answer may have passed before the rest turns out to be none
        passed = exchange(path, post("/NetworkDriver.Join"))
        assert passed.startswith(b"HTTP/1.1 ")
        assert len(passed) < 2200
        assert call(good, "VolumeDriver.List")[0] == 200
        wait_until(lambda: proxy.descriptors() <= before)


@pytest.mark.parametrize("method", ["VolumeDriver.Get", "NetworkDriver.Join"])
def test_p08_a_length_that_contradicts_the_chunks_desynchronizes_no_consumer(tmp_path: Path, method: str) -> None:
    """The rest would be read as the answer to the consumer's next call."""
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(smuggled) + 2, b"{}" + smuggled)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n"
    with attacked(tmp_path, lambda connection, *_: connection.sendall(head + body)) as (_, _, path, _):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(limit(20))
            client.connect(path)
            client.sendall(
                f"POST /{method} HTTP/1.1\r\nHost: p\r\nContent-Length: 12\r\n\r\n".encode() + b'{"Name":"v"}'
            )
            answered = b""
            while piece := client.recv(65536):
                answered += piece
                if b'"Err"' in answered:
                    break
        assert answered.count(b"HTTP/1.1 200") <= 1
        assert smuggled not in answered


def test_p07_a_directory_that_the_plugin_may_only_read_is_no_volume(tmp_path: Path) -> None:
    """Its consumers mount volumes writable: a plugin with the host's /etc read-only had it written by a container."""
    granted = tmp_path / "granted"

    def answering(connection: socket.socket, target: str, _: bytes) -> None:
        answer(connection, {"Mountpoint": f"{granted}/v"} if target.endswith("Mount") else {})

    with attacked(tmp_path, answering) as (proxy, hostile, path, _):
        (granted / "v").mkdir(parents=True)
        for is_read_only, expected in ((True, 500), (False, 200)):
            rule = PathRule(str(granted), str(granted), "bind", is_read_only)
            table = hostile.table(proxy.published)
            proxy.send(msgspec.structs.replace(table, paths=(rule, *table.paths)))
            status, answered = call(path, "VolumeDriver.Mount", Name="v", ID="1")
            assert status == expected, answered
            assert is_read_only is ("read-only" in answered.get("Err", ""))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_p11a_a_link_instead_of_its_directory_unmounts_nothing_elsewhere(tmp_path: Path) -> None:
    """What is unmounted with the last Unmount was found by its path, through directories that the plugin replaces."""
    victim = tmp_path / "victim"
    (victim / "v").mkdir(parents=True)
    remove_mounts_at_exit(tmp_path)

    def answering(connection: socket.socket, target: str, _: bytes) -> None:
        answer(connection, {"Mountpoint": f"{tmp_path}/bad/inside/a/v"} if target.endswith("Mount") else {})

    def cover(directory: Path) -> None:
        descriptor = os.open(directory, os.O_PATH)
        mount_placeholder(descriptor)
        os.close(descriptor)

    with attacked(tmp_path, answering) as (proxy, hostile, path, _):
        point = hostile.inside / "a/v"
        point.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "volume", point], check=True)
        assert call(path, "VolumeDriver.Mount", Name="v", ID="1")[0] == 200
        proxy.send(hostile.table(proxy.published, state="starting"))  # it has exited: its mounts may be covered
        cover(point)
        cover(victim / "v")
        (hostile.inside / "a").rename(hostile.inside / "b")
        (hostile.inside / "a").symlink_to(victim)
        proxy.send(hostile.table(proxy.published, state="disabled", while_disabled="answer"))
        call(path, "VolumeDriver.Unmount", Name="v", ID="1")
        assert mount_state(victim / "v") == "placeholder", "that of another plugin, say"
        until_reported(proxy, "release-failed", 1)
    unmount_all_below(tmp_path)
