"""What plugins use, queried from a real engine: at rest, at work, and while they restart."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import leftovers
from support.engines import EngineProcess, Refused, config, engine, kill
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

STATS = "/moorage/v1/stats"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("quiet")
        made.create("big", config("allocate=64", "flood=20000000"))
        made.create("off")
        made.enable("quiet")
        made.enable("big")
        yield made
        for name in ("quiet", "big", "off"):
            made.remove(name, force=True)


def moorage(house: EngineProcess, *words: str) -> str:
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=True).stdout


def test_a05_stats_of_one_and_of_all(house: EngineProcess) -> None:
    wait_until(
        lambda: house.request_own("GET", "big", "stats")["MemoryBytes"] >= 64 * 2**20, "the memory that it takes"
    )
    seen = house.request_own("GET", "big", "stats")
    assert seen["Name"] == "big:latest"
    assert 64 * 2**20 <= seen["MemoryBytes"] < 200 * 2**20
    assert seen["Pids"] == len(leftovers.processes_in(house.more("big")["ControlGroup"])) == 2  # the flood is a child
    assert seen["OomKills"] == 0
    assert {each["Name"] for each in house.request_json("GET", STATS)} == {"quiet:latest", "big:latest"}
    with pytest.raises(Refused, match="409: plugin off:latest does not run: it is disabled"):
        house.request_own("GET", "off", "stats")
    with pytest.raises(Refused, match="404"):
        house.request_own("GET", "nobody", "stats")


def test_the_command_shows_a_table_or_json(house: EngineProcess) -> None:
    head, *rows = moorage(house, "stats", "--once").splitlines()
    assert head.split() == ["NAME", "CPU", "%", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN"]
    assert [row.split()[0] for row in rows] == ["big:latest", "quiet:latest"]
    assert "does not run" in moorage(house, "stats", "--once", "off")
    seen = {each["Name"]: each for each in map(json.loads, moorage(house, "--json", "stats", "--once").splitlines())}
    assert seen["big:latest"]["CpuPercent"] > 1
    assert seen["quiet:latest"]["CpuPercent"] < seen["big:latest"]["CpuPercent"]


def test_stats_go_on_while_a_plugin_restarts(house: EngineProcess) -> None:
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "--json", "stats", "--interval=0.1"]
    with subprocess.Popen([*command, "quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as live:
        assert live.stdout is not None
        assert json.loads(live.stdout.readline())["Name"] == "quiet:latest"
        for restarts in range(1, 4):
            kill([house.until("quiet", "ready")["Pid"]])
            wait_until(lambda: house.more("quiet")["Restarts"] == restarts, "the restart")  # noqa: B023 - here and now
        house.until("quiet", "ready")
        for _ in range(5):
            live.stdout.readline()
        live.terminate()
        assert live.stderr is not None
        assert live.stderr.read() == ""


def test_case_086_inspect_shows_what_runs_and_zombies(house: EngineProcess) -> None:
    processes = house.more("big")["Processes"]
    assert processes[0]["Pid"] == house.more("big")["Pid"]
    assert processes[0]["Command"].startswith("/actor")
    assert [each["Parent"] for each in processes[1:]] == [processes[0]["Pid"]]
    assert sum(each["MemoryBytes"] for each in processes) > 64 * 2**20
    child = processes[1]["Pid"]
    kill([child])
    wait_until(lambda: house.more("big")["Processes"][-1]["State"] == "Z", "the child shown as a zombie")
    assert house.more("off")["Processes"] == []
    assert Path(f"/proc/{child}").exists()
