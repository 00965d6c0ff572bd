"""Metrics of a real engine: what plugins do is what they say."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage import __version__
from support.engines import EngineProcess, config, engine, kill
from support.foreground import wait_until
from support.kills import stop
from support.limits import limit
from support.metrics import families, fetch, read, sample

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

ROOT = Path(__file__).resolve().parents[2]
STATES = ("disabled", "starting", "ready", "restarting", "stopping", "failed", "removing")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine"), metrics="127.0.0.1:0") as made:
        yield made
        for plugin in made.plugins():
            made.remove(plugin["Name"], force=True)


def scrape(house: EngineProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return read(fetch(house.metrics_url()))


def test_an_enable_a_crash_a_disable_and_a_removal_are_in_the_numbers(house: EngineProcess) -> None:
    before = scrape(house)
    for state in STATES:
        assert before[sample("moorage_plugins", state=state)] == 0
    started, stopped = (before[sample(f"moorage_plugin_{word}_seconds_count")] for word in ("start", "stop"))
    house.create("a", config("out=hello", "err=you", "allocate=32"))
    me = {"plugin": "a:latest"}
    made = scrape(house)
    assert made[sample("moorage_plugins", state="disabled")] == 1
    assert made[sample("moorage_plugin_ready", **me)] == 0
    assert sample("moorage_plugin_cpu_seconds_total", **me) not in made

    house.enable("a")
    wait_until(lambda: scrape(house)[sample("moorage_plugin_memory_bytes", **me)] >= 32 * 2**20, "its memory")
    on = scrape(house)
    assert on[sample("moorage_plugins", state="ready")] == on[sample("moorage_plugin_ready", **me)] == 1
    assert on[sample("moorage_plugin_start_seconds_count")] == started + 1
    assert 0 < on[sample("moorage_plugin_start_seconds_sum")] - before[sample("moorage_plugin_start_seconds_sum")] < 30
    assert on[sample("moorage_plugin_memory_bytes", **me)] < 100 * 2**20
    assert on[sample("moorage_plugin_cpu_seconds_total", **me)] > 0
    assert on[sample("moorage_plugin_pids", **me)] == 1
    assert on[sample("moorage_plugin_log_bytes_total", stream="stdout", **me)] == len("hello\n")
    assert on[sample("moorage_plugin_log_bytes_total", stream="stderr", **me)] == len("you\n")
    assert on[sample("moorage_plugin_log_dropped_lines_total", **me)] == 0
    assert on[sample("moorage_containerd_rpc_seconds_count", method="Tasks.Start")] == started + 1

    house.crash("a", 3)
    house.wait_until(lambda: scrape(house).get(sample("moorage_plugin_restarts_total", **me)) == 1, "restarted")
    house.until_restarted("a", 1)
    crashed = scrape(house)
    assert crashed[sample("moorage_plugin_exits_total", code="3", signal="", oom="false", **me)] == 1
    kill([house.more("a")["Pid"]])
    killed = sample("moorage_plugin_exits_total", code="137", signal="SIGKILL", oom="false", **me)
    house.wait_until(lambda: scrape(house).get(killed) == 1, "killed")
    house.until_restarted("a", 2)

    house.disable("a")
    off = scrape(house)
    assert off[sample("moorage_plugin_stop_seconds_count")] == stopped + 1
    assert off[sample("moorage_plugin_ready", **me)] == 0
    assert off[sample("moorage_plugin_restarts_total", **me)] == 2
    assert sum(value for (name, _), value in off.items() if name == "moorage_plugin_exits_total") == 3
    assert not {"moorage_plugin_memory_bytes", "moorage_plugin_pids"} & {name for name, _ in off}
    house.remove("a")
    assert [key for key in scrape(house) if ("plugin", "a:latest") in key[1]] == []


def test_the_engine_says_what_it_is_and_the_socket_says_the_same(house: EngineProcess) -> None:
    house.create("b")
    seen = scrape(house)
    [about] = [dict(labels) for name, labels in seen if name == "moorage_engine_info"]
    assert about.pop("snapshotter") in ("overlayfs", "native")
    assert about == {"version": __version__, "namespace": "plugins.moby"}
    status, body = house.request("GET", "/moorage/v1/metrics")
    assert (status, families(body.decode())) == (200, families(fetch(house.metrics_url())))
    assert fetch(house.metrics_url(), Accept="application/openmetrics-text").endswith("# EOF\n")
    house.remove("b")


def test_scrapes_go_on_while_plugins_restart_come_and_go(house: EngineProcess) -> None:
    names = ("c1", "c2", "c3")
    for name in names:
        house.create(name)
        house.enable(name)
    done, failures, counts = threading.Event(), [], []

    def scrape_on() -> None:
        while not done.is_set():
            try:
                seen = scrape(house)
                assert sum(seen[sample("moorage_plugins", state=state)] for state in STATES) >= len(names)
                counts.append(seen[sample("moorage_plugin_restarts_total", plugin="c1:latest")])
            except Exception as error:  # noqa: BLE001 - reported by the test
                failures.append(error)

    scrapers = [threading.Thread(target=scrape_on) for _ in range(2)]
    for each in scrapers:
        each.start()
    try:
        for _ in range(3):
            kill([house.more(name)["Pid"] for name in names])
            house.create("brief")
            house.remove("brief")
            for name in names:
                house.until(name, "ready")
    finally:
        done.set()
        for each in scrapers:
            each.join()
    assert failures == []
    assert len(counts) > 5
    seen = scrape(house)
    assert all(seen[sample("moorage_plugin_restarts_total", plugin=f"{name}:latest")] == 3 for name in names)
    for name in names:
        house.remove(name, force=True)


def test_a_containerd_that_hangs_is_down_and_the_scrape_does_not_hang_with_it(house: EngineProcess) -> None:
    pid = int((house.exec_root / "containerd/pid").read_text().split()[0])
    up = sample("moorage_containerd_up")
    assert scrape(house)[up] == 1
    stop(pid)
    try:
        assert scrape(house)[up] == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    assert scrape(house)[up] == 1


def test_a_port_that_is_taken_ends_the_command_with_words_and_leaves_nothing(
    house: EngineProcess, tmp_path: Path
) -> None:
    address = house.metrics_url().removeprefix("http://").removesuffix("/metrics")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "moorage", "serve", f"--root={tmp_path / 'data'}", f"--exec-root={run}"]
    done = subprocess.run(
        command,
        env={**os.environ, "MOORAGE_METRICS_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot serve metrics on {address}: another program listens there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.exists() or list(run.iterdir()) == []


def test_the_reference_has_every_metric_with_its_type_and_labels(house: EngineProcess) -> None:
    house.create("d")
    house.enable("d")
    house.crash("d", 1)
    house.until_restarted("d", 1)
    house.request_own(
        "PUT", "d", "policy", {"memory_bytes": 64 << 20, "cpus": 1, "standby": True}
    )  # a limit has a series only where there is one
    house.request_own("PUT", "d", "policy", {"health": {"Checks": [{"Kind": "connect"}]}})
    house.request_own("POST", "d", "wait?timeout=30")
    house.wait_until(lambda: house.more("d")["StandbyPid"], "it has a standby")
    page = (ROOT / "docs/reference/metrics.md").read_text()
    rows = re.findall(r"^\| `(moorage_\w+)` \| (\w+) \|(.*?)\|.*\|$", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    # The one metric that has no series without a failure.
    assert documented.pop("moorage_containerd_rpc_failures_total") == ("counter", {"method", "kind"})
    seen = families(fetch(house.metrics_url()))
    seen.pop("moorage_containerd_rpc_failures_total", None)
    assert documented == seen
    house.remove("d", force=True)
