"""Case 240: plugins on the host's network see its /etc/resolv.conf and /etc/hosts as they are now."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.foreground import LISTEN, Machine, environment, make_plugin, wait_until

pytestmark = pytest.mark.real

OWN_ETC = "mount -t tmpfs etc /mnt && cp -a /etc/. /mnt/ && mount --move /mnt /etc"
FILES = {"resolv": "/etc/resolv.conf", "hosts": "/etc/hosts"}

# Prints the two files whenever they are other ones than before.
WATCH = (
    LISTEN
    + """
seen = {}
while True:
    for name, path in (("resolv", "/etc/resolv.conf"), ("hosts", "/etc/hosts")):
        try:
            text = open(path).read().strip().replace("\\n", "|")
        except OSError as error:
            text = error.strerror
        if text != seen.get(name):
            seen[name] = text
            print(f"{name}={text}", flush=True)
    time.sleep(0.05)
"""
)
WITHIN = 5.0  # seconds, the row's own


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(OWN_ETC) as made:
        yield made


def replace(machine: Machine, path: str, text: str) -> None:
    machine.do(f"printf '{text}\\n' > {path}.new && mv {path}.new {path}")


def plugin(directory: Path) -> Path:
    return make_plugin(directory, WATCH, network={"type": "host"})


def check_replacements(machine: Machine, said: Callable[[], list[str]]) -> None:
    for number in (1, 2):
        for name, path in FILES.items():
            replace(machine, path, f"192.0.2.{number} {name}")
            line = f"{name}=192.0.2.{number} {name}"
            wait_until(lambda line=line: line in said(), line, WITHIN)  # type: ignore[misc]


def test_case_240_a_run_sees_files_that_are_replaced(machine: Machine, tmp_path: Path) -> None:
    run = machine.start(plugin(tmp_path / "it"))
    run.until("output")
    check_replacements(machine, lambda: [each["line"] for each in run.all("output")])
    assert run.end(signal.SIGINT) == 130
    assert run.stderr == ""


def test_case_240_a_run_notes_a_missing_file_and_sees_it_when_it_comes(machine: Machine, tmp_path: Path) -> None:
    machine.do("rm /etc/resolv.conf")
    run = machine.start(plugin(tmp_path / "it"))

    def lines() -> list[str]:
        return [each["line"] for each in run.all("output")]

    wait_until(lambda: "resolv=" in lines(), "an empty file")
    assert "there is no /etc/resolv.conf on this host" in run.stderr
    replace(machine, "/etc/resolv.conf", "nameserver 192.0.2.9")
    wait_until(lambda: "resolv=nameserver 192.0.2.9" in lines(), "the file that came", WITHIN)
    assert run.end(signal.SIGINT) == 130


class Serving:
    """An engine on the machine."""

    def __init__(self, machine: Machine, log: Path) -> None:
        self.machine, self.log = machine, log
        self.child: subprocess.Popen[bytes] | None = None

    def words(self, *words: str | Path) -> list[str]:
        directories = ["MOORAGE_ROOT=/var/tmp/moorage", "MOORAGE_EXEC_ROOT=/run/moorage"]
        return ["env", *directories, sys.executable, "-m", "moorage", *map(str, words)]

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.machine.command(*self.words("serve")), stdout=log, stderr=log, env=environment(None)
            )
        wait_until(lambda: self.ask("ls").returncode == 0, "the engine answers", 60)

    def kill(self) -> None:
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def ask(self, *words: str | Path) -> Any:
        return subprocess.run(
            self.machine.command(*self.words("--host", "unix:///run/moorage/moorage.sock", *words)),
            capture_output=True, text=True, timeout=60, env=environment(None), check=False,
        )  # fmt: skip

    def ok(self, *words: str | Path) -> str:
        done = self.ask(*words)
        assert done.returncode == 0, f"{words}: {done.stderr} {self.log.read_text()[-3000:]}"
        return str(done.stdout)

    def lines(self) -> list[str]:
        return [line.rpartition(" | ")[2] for line in self.ok("logs", "watch").splitlines()]


def test_case_240_plugins_of_an_engine_see_them_too_also_after_its_restart(machine: Machine, tmp_path: Path) -> None:
    engine = Serving(machine, tmp_path / "log")
    engine.start()
    try:
        engine.ok("create", "watch", plugin(tmp_path / "it"))
        engine.ok("enable", "watch")

        def said() -> list[str]:
            return engine.lines()

        check_replacements(machine, said)
        engine.kill()
        replace(machine, "/etc/resolv.conf", "192.0.2.77 while no engine ran")
        engine.start()
        wait_until(lambda: "resolv=192.0.2.77 while no engine ran" in str(said()), "the change", 2 * WITHIN)
        replace(machine, "/etc/hosts", "192.0.2.78 after")
        wait_until(lambda: "hosts=192.0.2.78 after" in str(said()), "the next change", WITHIN)
        machine.do("rm /etc/resolv.conf")
        wait_until(lambda: "there is no /etc/resolv.conf on this host" in engine.log.read_text(), "the note", WITHIN)
    finally:
        down = engine.ask("down")
        if engine.child is not None:
            engine.child.wait(60)
    assert down.returncode == 0, down.stderr
    machine.do("rm -rf /var/tmp/moorage")
