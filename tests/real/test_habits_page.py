"""Each command of the table in docs/reference/habits.md is typed, in the order of the page, on a real engine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.apply_files import push_version
from support.engines import EngineProcess, actor, config, engine
from support.foreground import wait_until
from support.limits import limit
from support.registries import Served
from support.terminals import Typist

pytestmark = [pytest.mark.real, pytest.mark.extensive, pytest.mark.needs("static-cc", "docker-registry")]

PAGE = (Path(__file__).parents[2] / "docs/reference/habits.md").read_text()
COMMANDS = [line.split("|")[4].strip().strip("`") for line in PAGE.splitlines() if line.startswith("| ")][1:]
ELSEWHERE = {
    "moorage login": "tests/real/test_habits_registry.py",
    "moorage --host ssh://user@machine ls": "tests/peers/test_ssh.py",
    "moorage serve": "tests/real/test_service.py",
}
ENDLESS = ("moorage logs -f", "moorage events")
HOST = [
    {"name": each.strip("/"), "source": each, "destination": each, "type": "bind", "options": ["rbind", "ro"]}
    for each in ("/usr", "/bin", "/lib", "/lib64")
]
ENV = [{"name": "K", "value": "0", "settable": ["value"]}]


class Table:
    """Words of the page, and what they are here; a row may have its own."""

    def __init__(self, house: EngineProcess, registry: Served, folder: Path) -> None:
        self.house, self.folder = house, folder
        remote = f"{registry.host}/t/n:1"
        push_version(house, remote, "out=hello", env=ENV)
        for name in ("other", "victim", "old"):
            house.create(name, config("out=hello"))
        house.create("shell", config("out=hello", mounts=HOST), **{"etc/x": b"x"})
        for name in ("other", "shell"):
            house.enable(name)
        (folder / "DIR/rootfs").mkdir(parents=True)
        (folder / "DIR/rootfs/actor").write_bytes(actor())
        (folder / "DIR/config.json").write_text(json.dumps(config()))
        (folder / "F").write_text("plugins: []\n")
        self.words = {"REF": remote, "NAME": "made", "K=V": "K=1", "A": "shell", "B": "other"}
        self.own = {
            "moorage push N": {"N": remote},
            "moorage rm -f N": {"N": "victim"},
            "moorage rename A B": {"A": "old", "B": "new"},
            "moorage tag A B": {"A": "other", "B": "further"},
            "moorage exec -it -u U -w DIR -e K=V N sh": {"N": "shell", "U": "0", "DIR": "/usr"},
            "moorage cp N:/etc/x .": {"N:/etc/x": "shell:/etc/x"},
            "moorage save -o F N": {"F": "archive"},
            "moorage context": {"context": "context ls"},
        }

    def line(self, command: str) -> str:
        """The command with the words of this test."""
        words = {**self.words, "N": "n", **self.own.get(command, {})}
        return " ".join(words.get(each, each) for each in command.split())

    def environment(self) -> dict[str, str]:
        program = self.folder / "bin/moorage"
        if not program.exists():
            program.parent.mkdir()
            program.write_text(f'#!/bin/sh\nexec {sys.executable} -m moorage "$@"\n')
            program.chmod(0o755)
        made = {key: value for key, value in os.environ.items() if not key.startswith(("MOORAGE_", "DOCKER_"))}
        return {
            **made,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "MOORAGE_HOST": f"unix://{self.house.socket}",
            "HOME": str(self.folder),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, command: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", "-c", f"exec {self.line(command)}"],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def table(registry: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Table]:
    with engine(tmp_path_factory.mktemp("engine")) as house:
        yield Table(house, registry, tmp_path_factory.mktemp("home"))
        for each in house.plugins():
            house.remove(each["Id"], force=True)


def test_h08_what_is_run_elsewhere_is_in_the_table() -> None:
    assert set(ELSEWHERE) <= set(COMMANDS)
    assert len(COMMANDS) == len(set(COMMANDS))


def test_h08_every_habit_works_in_the_order_of_the_page(table: Table) -> None:
    """What one installs, the next ones use."""
    for command in COMMANDS:
        if command not in ELSEWHERE:
            run_row(table, command)


def run_row(table: Table, command: str) -> None:
    """Type a row; it must succeed."""
    if command.startswith("moorage exec -it"):
        words = table.line(command).split()[1:]
        person = Typist(80, "--host", f"unix://{table.house.socket}", *words)
        person.type(b"echo $K:$PWD; exit\n")
        screen = person.end()
        assert (screen.status, "1:/usr" in screen.lines) == (0, True), screen.raw
        return
    if command in ("moorage kill -s HUP N", "moorage wait N"):
        table.house.until("n", "ready")
    child = table.start(command)
    try:
        if command.startswith(ENDLESS):
            assert child.stdout is not None
            assert child.stdout.readline()
            child.send_signal(signal.SIGINT)
        if command == "moorage wait N":
            wait_until(lambda: table.house.info()["NEventsListener"] == 1, "it waits")
            table.house.crash("n", 3)
        out, err = child.communicate(timeout=limit(60))
    finally:
        child.kill()
        child.wait()
    expected = {130} if command.startswith(ENDLESS) else {0, 1} if command == "moorage doctor" else {0}
    assert child.returncode in expected, (table.line(command), out, err)
    if command == "moorage upgrade N REF":  # which a disabled plugin needs; the next rows are about one that runs
        table.house.enable("n")
