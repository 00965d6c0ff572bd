"""Inputs of any size, and streams that end, on a real engine: cases of the API's client and of the command line."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.api.schema.output import ExecRequest
from moorage.client import MoorageClient
from support.engines import EngineProcess, config, engine
from support.limits import limit

HOST = [
    {"name": each.strip("/"), "source": each, "destination": each, "type": "bind", "options": ["rbind", "ro"]}
    for each in ("/usr", "/bin", "/lib", "/lib64")
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("p", config(mounts=HOST))
        made.enable("p")
        yield made


def moorage(house: EngineProcess, *words: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    return subprocess.run(command, capture_output=True, check=False, timeout=limit(120), **more)


def write(house: EngineProcess, name: str, script: str) -> None:
    """Let a plugin's own output have what a script writes."""
    done = moorage(house, "exec", name, "sh", "-c", f"({script}) > /proc/1/fd/1")
    assert (done.returncode, done.stderr) == (0, b"")


def run(house: EngineProcess, *words: str) -> "subprocess.CompletedProcess[bytes]":
    return moorage(house, "exec", "p", *words)


@pytest.mark.parametrize("size", [9_000, 100_000, 128 * 1024 - 1])
def test_case_204_arguments_and_variables_of_exec_may_be_long(house: EngineProcess, size: int) -> None:
    done = run(house, "echo", "x" * size)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.rstrip(b"\n") == b"x" * size
    done = moorage(house, "exec", "-e", "LONG=" + "y" * (size - 5), "p", "echo", "short")
    assert (done.returncode, done.stdout.rstrip(b"\n"), done.stderr) == (0, b"short", b"")


def test_case_204_what_the_kernel_does_not_take_is_refused_by_name(house: EngineProcess) -> None:
    with MoorageClient(f"unix://{house.socket}")._open(
        "POST",
        "/moorage/v1/plugins/p/exec?command=%5B%22echo%22%2C%22old%22%5D",
        {},
        b"",
    ) as answer:  # the previous form still works
        assert b"old" in answer.read()
    client = MoorageClient(f"unix://{house.socket}")
    with (
        pytest.raises(Exception, match="text 2 of command: it has 131072 bytes, the kernel takes 131071"),
        client.execute("p", ExecRequest(["echo", "x" * 131072], [])),
    ):
        pass


def test_case_204_any_number_of_plugins_is_saved(house: EngineProcess, tmp_path: Path) -> None:
    names = [f"registry.example/a/rather/long/name/of/a/plugin/number-{number}:latest" for number in range(200)]
    for name in names:
        house.request_own("POST", "p", f"tag?to={name}")
    archive = tmp_path / "all.tar"
    done = moorage(house, "save", "-o", str(archive), *names)
    assert (done.returncode, done.stderr) == (0, b"")
    assert archive.stat().st_size > 1000


@pytest.mark.parametrize("is_again", [False, True], ids=["gone", "made-again"])
def test_case_221_what_is_followed_ends_when_the_plugin_is_removed(house: EngineProcess, is_again: bool) -> None:
    house.create("f", config(mounts=HOST))
    house.enable("f")
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "logs", "-f", "f", "--json"]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert follower.stdout is not None
    try:
        write(house, "f", "echo before")
        while b"before" not in (line := follower.stdout.readline()):
            assert line
        house.request_own("POST", "f", "restart")
        house.disable("f")
        house.enable("f")
        write(house, "f", "echo after")
        while b"after" not in (line := follower.stdout.readline()):
            assert line
        write(house, "f", "printf last")
        house.remove("f", force=True)
        if is_again:
            house.create("f", config(mounts=HOST))
        assert b"last" in follower.stdout.read()
        assert follower.wait(limit(60)) == 0
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close()
    if is_again:
        house.remove("f", force=True)


def test_case_223_a_line_of_300_kb_is_one_line_everywhere(house: EngineProcess) -> None:
    house.create("l", config(mounts=HOST))
    house.enable("l")
    write(house, "l", "echo before; head -c 300000 /dev/zero | tr '\\0' x; echo; echo after")
    house.wait_until(lambda: house.logs("l", "tail=1")[-1:][0]["text"] == "after", "all is in the log")
    for tail, expected in ((1, [5]), (2, [300_000, 5]), (3, [6, 300_000, 5])):
        assert [len(line["text"]) for line in house.logs("l", f"tail={tail}")] == expected
    done = moorage(house, "logs", "--tail", "2", "--json", "l")
    assert [len(json.loads(line)["text"]) for line in done.stdout.splitlines()] == [300_000, 5]
    write(house, "l", "head -c 2500000 /dev/zero | tr '\\0' y; echo; echo end")
    house.wait_until(lambda: house.logs("l", "tail=1")[-1:][0]["text"] == "end", "all is in the log")
    pieces = house.logs("l", "tail=2")[:-1]
    assert sum(len(line["text"]) for line in pieces) == 2_500_000
    assert [line.get("partial", False) for line in pieces] == [True] * (len(pieces) - 1) + [False]
    house.remove("l", force=True)


def test_case_call_an_error_in_the_answer_is_the_commands_exit_status(house: EngineProcess) -> None:
    for method, status in (("err/no", 1), ("err/", 0), ("Plugin.Activate", 0)):
        done = moorage(house, "call", "p", method)
        assert done.returncode == status, (method, done.stdout)
    assert b'"Err"' in moorage(house, "call", "p", "err/no").stdout


def test_case_233_a_parameter_without_a_value_is_none(house: EngineProcess) -> None:
    empty = "timeout=&tail=&since=&follow=&force=&filters=&until=&tty=&env=&rows=&columns=&attached=&name="
    house.disable("p")
    for method, path, body in (
        ("POST", f"/plugins/p/enable?{empty}", None),
        ("GET", f"/plugins?{empty}", None),
        ("GET", f"/moorage/v1/plugins/p/logs?{empty}", None),
        ("POST", f"/moorage/v1/plugins/p/call?method=Plugin.Activate&{empty}", b"{}"),
        ("POST", f"/moorage/v1/plugins/p/exec?command=%5B%22echo%22%5D&{empty}", None),
        ("POST", f"/plugins/p/disable?{empty}", None),
        ("POST", f"/plugins/p/enable?{empty}", None),
    ):
        status, raw = house.request(method, path, body)
        assert status < 300, (path, raw)


def test_case_235_200_commands_of_our_client_at_the_same_moment_are_served(house: EngineProcess) -> None:
    failures: list[BaseException] = []
    gate = threading.Barrier(200)

    def send() -> None:
        gate.wait()
        try:
            MoorageClient(f"unix://{house.socket}").plugins()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)

    threads = [threading.Thread(target=send) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
