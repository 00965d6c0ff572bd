"""Case 240: plugins on the host's network see its /etc/resolv.conf and /etc/hosts as they are now."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.foreground import LISTEN, Machine, make_plugin, wait_until
from support.machine_engine import MachineEngine

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


def test_case_240_plugins_of_an_engine_see_them_too_also_after_its_restart(machine: Machine, tmp_path: Path) -> None:
    with MachineEngine(machine, tmp_path / "log") as engine:
        engine.ok("create", "watch", plugin(tmp_path / "it"))
        engine.ok("enable", "watch")

        def said() -> list[str]:
            return engine.lines("watch")

        check_replacements(machine, said)
        engine.kill()
        replace(machine, "/etc/resolv.conf", "192.0.2.77 while no engine ran")
        engine.start()
        wait_until(lambda: "resolv=192.0.2.77 while no engine ran" in str(said()), "the change", 2 * WITHIN)
        replace(machine, "/etc/hosts", "192.0.2.78 after")
        wait_until(lambda: "hosts=192.0.2.78 after" in str(said()), "the next change", WITHIN)
        machine.do("rm /etc/resolv.conf")
        wait_until(lambda: "there is no /etc/resolv.conf on this host" in engine.log.read_text(), "the note", WITHIN)
