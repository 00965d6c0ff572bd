"""What ``-v`` logs: Moorage's own steps. ``-vv`` adds those of the libraries."""

import signal
from pathlib import Path

import pytest

from support.foreground import LISTEN, Machine, make_plugin, wait_until
from support.machine_engine import MachineEngine

LIBRARIES = ("hpack", "h2", "grpclib", "asyncio", "aiohttp")
PLUGIN = LISTEN + "signal.pause()\n"


def sources(log: str) -> set[str]:
    """The loggers whose lines are in a log."""
    lines = [line.split() for line in log.splitlines()]
    return {words[1].rstrip(":").partition(".")[0] for words in lines if words[0] in ("DEBUG", "INFO", "WARNING")}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("option", ["-v", "-vv"])
def test_run_logs_its_steps(machine: Machine, tmp_path: Path, option: str) -> None:
    with (tmp_path / "log").open("w") as log:
        run = machine.start(make_plugin(tmp_path / "it", PLUGIN), before=[option], stderr=log)
        run.until("ready")
        assert run.end(signal.SIGINT) == 130
    text = (tmp_path / "log").read_text()
    assert "moorage" in sources(text)
    assert "Tasks.Start of containerd: OK after" in text
    assert bool(sources(text) & set(LIBRARIES)) is (option == "-vv")


@pytest.mark.parametrize("option", ["-v", "-vv"])
def test_serve_and_a_command_log_their_steps(machine: Machine, tmp_path: Path, option: str) -> None:
    log = tmp_path / "log"
    with MachineEngine(machine, log, option) as engine:
        make_plugin(tmp_path / "it", PLUGIN)
        engine.ok("create", "it", tmp_path / "it")
        engine.ok("enable", "it")
        wait_until(lambda: "plugin it:latest is ready" in log.read_text(), "the line")
        said = engine.run(option, "ls").stderr
        assert engine.run("ls").stderr == ""
    assert "DEBUG moorage.client.transport: GET /plugins on /run/moorage/moorage.sock" in said
    assert sources(said) == {"moorage"}  # a client has no library that logs
    text = log.read_text()
    assert "Tasks.Start of containerd: OK after" in text
    assert "got SIGTERM, leaving the plugins to the next engine or to `moorage down`" in text
    assert bool(sources(text) & set(LIBRARIES)) is (option == "-vv")
