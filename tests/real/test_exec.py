"""moorage exec against a real engine: streams, terminal, exit codes, and what happens to the process and the plugin."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from support import leftovers
from support.engines import EngineProcess, Refused, config, engine, kill
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

HOST = [
    {"name": each.strip("/"), "source": each, "destination": each, "type": "bind", "options": ["rbind", "ro"]}
    for each in ("/usr", "/bin", "/lib", "/lib64")
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine with one plugin that has the host's programs."""
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("p", config(mounts=HOST, env=[{"name": "MINE", "value": "from the config"}]))
        made.create("off")
        made.enable("p")
        yield made
        made.remove("p", force=True)
        made.remove("off")


def command(house: EngineProcess, *words: str) -> list[str]:
    return [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "exec", *words]


def run(house: EngineProcess, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(house, *words), input=given, capture_output=True, text=True, timeout=limit(60))


def processes(house: EngineProcess) -> list[str]:
    return [each["Command"] for each in house.more("p")["Processes"]]


@pytest.fixture(autouse=True)
def unharmed(house: EngineProcess) -> Iterator[None]:
    """No command that ends takes the plugin with it, or leaves anything."""
    before = house.more("p")["Pid"], house.more("p")["Restarts"]
    yield
    wait_until(lambda: processes(house) == ["/actor"], "the plugin's own process alone")
    if house.more("p")["Restarts"] == before[1]:
        assert house.more("p")["Pid"] == before[0]
    wait_until(lambda: not list((house.exec_root / "p").glob("*/exec-*")), "no stream is left")


def test_streams_are_apart_and_the_status_is_the_commands(house: EngineProcess) -> None:
    done = run(house, "p", "sh", "-c", "echo out; echo err >&2; echo $MINE; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\nfrom the config\n", "err\n")


def test_input_is_passed_on_only_when_requested(house: EngineProcess) -> None:
    assert run(house, "-i", "p", "cat", given="one\ntwo\n").stdout == "one\ntwo\n"
    assert run(house, "p", "cat", given="one\n").stdout == ""
    big = "x" * 3_000_000
    assert run(house, "-i", "p", "wc", "-c", given=big).stdout.strip() == str(len(big))
    assert len(run(house, "p", "head", "-c", "3000000", "/dev/zero").stdout) == 3_000_000


def test_options_of_the_command_are_its_own_and_variables_are_set(house: EngineProcess) -> None:
    assert run(house, "-e", "MINE=new", "p", "printenv", "MINE").stdout == "new\n"
    assert run(house, "p", "ls", "-d", "--", "/usr").stdout == "/usr\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (
            ("p", "/no/such/program"),
            127,
            r"cannot run /no/such/program in plugin p:latest: .*no such file or directory",
        ),
        (("off", "true"), 125, r"plugin off:latest does not run: it is disabled"),
        (("nobody", "true"), 125, r'plugin "nobody" not found'),
    ],
)
def test_what_cannot_be_run_is_reported(house: EngineProcess, words: tuple[str, ...], status: int, said: str) -> None:
    done = run(house, *words)
    assert done.returncode == status
    assert re.fullmatch(rf"moorage: .*{said}.*\n", done.stderr)


def test_a02_wrong_calls(house: EngineProcess) -> None:
    for query, said in (
        ("", "there is no command"),
        ("command=x", "invalid command: it must be a JSON list of texts"),
        ("command=[1]", "invalid command"),
        ('command=["x"]&env=["x"]', "invalid env: each must be NAME=VALUE"),
        ('command=["x"]&tty=1&rows=0&columns=3', "cannot make a terminal of 0 rows"),
        ('command=["x"]&tty=1&rows=x', "400"),
    ):
        with pytest.raises(Refused, match=re.escape(said)):
            house.request_json("POST", "/moorage/v1/plugins/p/exec?" + query.replace('"', "%22"))
    with pytest.raises(Refused, match="404: plugin p:latest has no added process x"):
        house.request_json("POST", "/moorage/v1/plugins/p/exec/x/resize?rows=1&columns=1")


def test_a_terminal_without_input(house: EngineProcess) -> None:
    done = run(house, "-t", "p", "sh", "-c", "tty; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "/dev/pts/0\nerr\n", "")


def test_a_terminal_has_its_size_and_follows_it(house: EngineProcess) -> None:
    with Terminal(command(house, "-it", "p", "sh")) as terminal:
        terminal.type("stty size; tty > /dev/null && echo 'is 'one\n")
        terminal.until("24 80")
        terminal.until("is one")
        terminal.resize(40, 100)
        wait_until(lambda: terminal.answers("stty size\n", "40 100"), "the new size")
        terminal.type("exit 5\n")
        assert terminal.end() == 5


def test_ctrl_c_goes_to_the_command_and_not_to_us(house: EngineProcess) -> None:
    with Terminal(command(house, "-it", "p", "sh")) as terminal:
        terminal.type("sleep 1000\n")
        wait_until(lambda: "sleep 1000" in processes(house), "the sleep")
        terminal.type("\x03")
        wait_until(lambda: "sleep 1000" not in processes(house), "its end")
        terminal.type("echo 'still 'here; exit\n")
        terminal.until("still here")
        terminal.end()


def test_a_command_whose_client_is_killed_is_stopped(house: EngineProcess) -> None:
    with subprocess.Popen(command(house, "p", "sleep", "1000"), stdout=subprocess.PIPE) as client:
        wait_until(lambda: "sleep 1000" in processes(house), "the sleep")
        client.kill()
    wait_until(lambda: processes(house) == ["/actor"], "its end")


def test_a_child_that_keeps_the_output_open_does_not_keep_the_call(house: EngineProcess) -> None:
    started = time.monotonic()
    done = run(house, "p", "sh", "-c", "sleep 1000 & echo before; exit 7")
    assert (done.returncode, done.stdout) == (7, "before\n")
    assert time.monotonic() - started < limit(50)
    assert "sleep 1000" in processes(house)
    restarts = house.more("p")["Restarts"]
    house.crash("p", 0)  # what goes with it is not left as a zombie, which the actor would never reap
    house.until_restarted("p", restarts + 1)


def test_m08_a_command_of_an_engine_that_is_killed_is_stopped_by_the_next_one(house: EngineProcess) -> None:
    with subprocess.Popen(command(house, "p", "sleep", "1000"), stderr=subprocess.PIPE) as client:
        wait_until(lambda: "sleep 1000" in processes(house), "the command runs")
        pid = house.more("p")["Pid"]
        house.end(signal.SIGKILL)
        assert client.wait(limit(30)) == 125
        house.start()
        house.until("p", "ready")
        wait_until(lambda: processes(house) == ["/actor"], "the plugin's own process alone")
        assert house.more("p")["Pid"] == pid


def test_many_at_once(house: EngineProcess) -> None:
    clients = [
        subprocess.Popen(command(house, "p", "sh", "-c", f"echo {n}; exit {n}"), stdout=subprocess.PIPE)
        for n in range(6)
    ]
    for number, client in enumerate(clients):
        assert client.communicate(timeout=limit(60))[0] == f"{number}\n".encode()
        assert client.returncode == number


def test_a_plugin_that_exits_ends_the_command_and_says_so(house: EngineProcess) -> None:
    with subprocess.Popen(command(house, "p", "sleep", "1000"), stderr=subprocess.PIPE, text=True) as client:
        wait_until(lambda: "sleep 1000" in processes(house), "the sleep")
        before = house.more("p")
        kill([before["Pid"]])
        _, said = client.communicate(timeout=limit(60))
    assert client.returncode in (1, 137)
    assert said == "" or "the plugin exited" in said
    house.until_restarted("p", before["Restarts"] + 1)
    assert run(house, "p", "echo", "again").stdout == "again\n"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, words: list[str]) -> None:
        self._pid, self._master = pty.fork()
        if self._pid == 0:
            os.execv(words[0], words)
        self.seen = ""
        self.resize(24, 80)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: Any) -> None:
        if leftovers.is_alive(self._pid):
            os.kill(self._pid, signal.SIGKILL)
        os.close(self._master)

    def resize(self, rows: int, columns: int) -> None:

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> None:
        os.set_blocking(self._master, False)

        def is_there() -> bool:
            try:
                self.seen += os.read(self._master, 65536).decode(errors="replace")
            except (BlockingIOError, OSError):
                pass
            return text in self.seen

        try:
            wait_until(is_there, f"{text!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}; there was {self.seen!r}") from None

    def answers(self, text: str, expected: str) -> bool:
        """Whether the answer to this, typed now, is soon the wanted one."""
        self.type(text)
        time.sleep(0.3)
        with suppress(BlockingIOError):
            self.seen += os.read(self._master, 65536).decode(errors="replace")
        return expected in self.seen

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def test_the_stream_of_frames_is_as_documented(house: EngineProcess) -> None:
    status, raw = house.request("POST", "/moorage/v1/plugins/p/exec?command=%5B%22echo%22%2C%22a%22%5D")
    assert status == 200
    kinds = []
    while raw:
        kind, length = raw[0], int.from_bytes(raw[1:5], "big")
        kinds.append((kind, raw[5 : 5 + length]))
        raw = raw[5 + length :]
    assert [kind for kind, _ in kinds] == [0, 1, 3]
    assert kinds[1][1] == b"a\n"
    assert json.loads(kinds[2][1]) == {"Code": 0}
    assert set(json.loads(kinds[0][1])) == {"Id", "Pid"}
