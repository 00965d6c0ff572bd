"""What an operator sees of a plugin that exits: events, last exit, restarts, uptime, output; on a real engine."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from moorage.cli.cmd_create import package
from moorage.host.cgroups import UNIFIED, find_groups
from moorage.logs.reader import PluginLog
from support.engines import EngineProcess, Refused, config
from support.foreground import LISTEN, make_plugin
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

# Who asks it to grow makes it take 200 MiB.
HUNGRY = (
    LISTEN
    + """
while True:
    c, _ = s.accept()
    if b"/grow" in c.recv(65536):
        hoard = b"x" * (200 << 20)
    c.close()
"""
)
LIMIT = 32 << 20
FIFO_BYTES = 1 << 20  # the largest read of the log keeper; stamps come to it


def events_since(house: EngineProcess, since: float) -> list[dict[str, Any]]:
    """Events of plugins since an instant."""
    _, raw = house.request("GET", f"/events?since={since:.6f}&until={time.time():.6f}")
    return [json.loads(line) for line in raw.splitlines()]


def moorage(house: EngineProcess, *words: str) -> list[str]:
    """The lines that a command prints."""
    command = [sys.executable, "-m", "moorage", "--host", str(house.socket), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=True).stdout.splitlines()


def ls(house: EngineProcess, name: str) -> str:
    """The line of a plugin in ``moorage ls``."""
    return next(line for line in moorage(house, "ls") if name in line)


def limit_memory(group: str) -> None:
    """Bound the memory of a control group from outside, as an operator would; without swap."""
    groups = find_groups(group)
    if "memory" in groups:
        bounds = {"memory.limit_in_bytes": LIMIT, "memory.memsw.limit_in_bytes": LIMIT, "memory.swappiness": 0}
    else:
        bounds = {"memory.max": LIMIT, "memory.swap.max": 0}
    directory = groups.get("memory") or groups[UNIFIED]
    for name, value in bounds.items():
        if (directory / name).exists():
            (directory / name).write_text(str(value))


def test_case_099_a_kill_by_the_oom_killer_is_reported_as_one(house: EngineProcess, tmp_path: Path) -> None:
    body = b"".join(package(make_plugin(tmp_path / "it", HUNGRY)))
    house.request_json("POST", "/plugins/create?name=hungry", body, headers={"Content-Type": "application/x-tar"})
    house.enable("hungry")
    started = time.time()
    limit_memory(house.more("hungry")["ControlGroup"])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(house.more("hungry")["Socket"])
        client.sendall(b"POST /grow HTTP/1.1\r\n\r\n")
    house.wait_until(lambda: house.more("hungry")["Restarts"] >= 1, "the restart")
    last = house.more("hungry")["LastExit"]
    assert (last["Code"], last["Signal"], last["OOM"]) == (137, "SIGKILL", True)
    die = next(each["Actor"] for each in events_since(house, started) if each["Action"] == "die")
    assert (die["Attributes"]["code"], die["Attributes"]["oom"]) == ("137", "true")
    assert "out of memory, " in ls(house, "hungry")
    house.remove("hungry", force=True)


def test_case_103_a_killed_plugin_is_reported_with_id_name_and_code(house: EngineProcess) -> None:
    house.create("p", config())
    house.enable("p")
    plugin = house.inspect("p")
    started = time.time()
    os.kill(plugin["Moorage"]["Pid"], signal.SIGKILL)
    house.wait_until(lambda: [each["Action"] for each in events_since(house, started)][-1:] == ["ready"], "ready again")
    events = events_since(house, started)
    assert [each["Action"] for each in events] == ["die", "restart", "ready"]
    assert {each["Actor"]["ID"] for each in events} == {plugin["Id"]}
    assert {each["Actor"]["Attributes"]["name"] for each in events} == {"p:latest"}
    die = events[0]["Actor"]["Attributes"]
    assert (die["code"], die["signal"], die["oom"]) == ("137", "SIGKILL", "false")
    assert " ready " in ls(house, "p:latest")
    assert " SIGKILL, " in ls(house, "p:latest")
    house.remove("p", force=True)


def test_case_103_a_plugin_that_goes_on_dying_waits_and_says_so(house: EngineProcess) -> None:
    started = time.time()
    house.create("dies")
    house.enable("dies")

    def waits() -> bool:
        house.crash("dies", 4)  # refused as long as it does not run
        return "backoff" in [each["Action"] for each in events_since(house, started)]

    house.wait_until(waits, "the first pause")
    pause = next(each["Actor"] for each in events_since(house, started) if each["Action"] == "backoff")
    assert pause["Attributes"]["name"] == "dies:latest"
    assert float(pause["Attributes"]["seconds"]) > 0
    house.disable("dies")
    assert " disabled " in ls(house, "dies")
    house.remove("dies")


def test_case_030_a_log_has_a_bound_whatever_is_written(house: EngineProcess) -> None:
    house.create("floods", config("flood=20000000"))
    house.enable("floods")
    log = PluginLog(house.root / "logs" / house.inspect("floods")["Id"])
    house.wait_until(
        lambda: log.totals().bytes["stdout"] > 4 * log.most_bytes, "four times the bound is written", limit(60)
    )
    house.disable("floods")
    stored_bytes = sum(path.stat().st_size for path in log.directory.iterdir())
    assert (
        log.most_bytes / 2 < stored_bytes < log.most_bytes + log.files * FIFO_BYTES * 2
    )  # each file may end with a write more
    house.remove("floods")


def test_l02_m05_case_030_a_later_engine_has_the_uptime_and_the_output(house: EngineProcess) -> None:
    house.create("fails", config("out=a", "err=b", "end=1"))
    with pytest.raises(Refused, match="exited with status 1"):
        house.enable("fails")
    house.create("p", config())
    house.enable("p")
    before = house.more("p")
    assert before["UptimeSeconds"] >= 0
    killed_at = datetime.now(UTC)
    house.end(signal.SIGKILL)
    house.start()
    after = house.until("p", "ready")
    assert after["Pid"] == before["Pid"]
    assert datetime.fromisoformat(after["StartedAt"]) < killed_at
    assert after["UptimeSeconds"] >= before["UptimeSeconds"]
    assert sorted(line.partition(" std")[2] for line in moorage(house, "logs", "fails")) == ["err | b", "out | a"]
    assert " 1, " in ls(house, "fails")
    house.disable("p")
    assert (house.more("p")["StartedAt"], house.more("p")["UptimeSeconds"]) == (None, None)
    house.remove("p")
    house.remove("fails")
