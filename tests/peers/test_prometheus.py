"""A real Prometheus scrapes an engine and answers queries; what the guide to monitoring says is done here."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine
from support.foreground import wait_until
from support.limits import limit
from support.metrics import fetch

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "prometheus", "promtool")]

PAGE = (Path(__file__).resolve().parents[2] / "docs/guide/monitoring.md").read_text()
LINES = re.findall(r"^    (\S.*)$", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL), re.MULTILINE)
FILES = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
SERVE, SETTING = "moorage serve --metrics-address 127.0.0.1:9469", "MOORAGE_METRICS_ADDRESS=127.0.0.1:9469"
COMMANDS = [line for line in LINES if line not in (SERVE, SETTING)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[str]:
    """A Prometheus with the guide's files, that scrapes this target; its URL."""
    for name, text in FILES.items():
        (directory / name).write_text(text.replace("127.0.0.1:9469", target))
    (directory / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, evaluation_interval: 200ms}\n" + (directory / "prometheus.yml").read_text()
    )
    port = free_port()
    words = [f"--web.listen-address=127.0.0.1:{port}", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
    with (directory / "prometheus.log").open("wb") as output:
        child = subprocess.Popen(["prometheus", *words], cwd=directory, stdout=output, stderr=output)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(limit(30))


def run_query(url: str, query: str) -> dict[str, float]:
    """What a query is now, by the values of its labels, those of the scrape apart."""
    try:
        answer = json.loads(fetch(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    except OSError:
        return {}  # it is not up yet
    assert answer["status"] == "success"
    found: dict[str, float] = {}
    for series in answer["data"]["result"]:
        labels = [value for key, value in series["metric"].items() if key not in ("__name__", "instance", "job")]
        found[" ".join(labels)] = float(series["value"][1])
    return found


def test_prometheus_scrapes_an_engine_and_answers_what_its_plugins_do(tmp_path: Path) -> None:
    with engine(tmp_path, metrics="127.0.0.1:0") as house:
        for name in ("a", "b"):
            house.create(name, config("allocate=16", "out=hello"))
        house.enable("a")
        target = house.metrics_url().removeprefix("http://").removesuffix("/metrics")
        (tmp_path / "peer").mkdir()
        with prometheus(tmp_path / "peer", target) as url:
            log = tmp_path / "peer/prometheus.log"
            try:
                follow(house, url)
            except AssertionError:
                sys.stderr.write(log.read_text())
                raise
        house.remove("b")


def follow(house: EngineProcess, url: str) -> None:
    ready = {"a:latest": 1.0, "b:latest": 0.0}
    wait_until(lambda: run_query(url, "moorage_plugin_ready") == ready, "the first scrape")
    assert run_query(url, 'up{job="moorage"}') == {"": 1}
    assert run_query(url, "moorage_containerd_up") == {"": 1}
    assert run_query(url, "moorage_plugins > 0") == {"disabled": 1, "ready": 1}
    wait_until(
        lambda: run_query(url, "moorage_plugin_memory_bytes > bool 16*1024*1024") == {"a:latest": 1}, "its memory"
    )
    assert run_query(url, "moorage_plugin_log_bytes_total > 0") == {"a:latest stdout": 6}
    assert 0 < run_query(url, "histogram_quantile(0.9, moorage_plugin_start_seconds_bucket)")[""] < 30
    house.crash("a", 3)
    exits = {"3 false a:latest": 1.0}
    wait_until(lambda: run_query(url, "moorage_plugin_exits_total") == exits, "the end of a run")
    wait_until(lambda: run_query(url, "moorage_plugin_restarts_total") == {"a:latest": 1, "b:latest": 0}, "the restart")
    wait_until(lambda: all(it["health"] == "ok" for it in fetch_rules(url)), "every rule of the guide evaluated")
    assert len(fetch_rules(url)) == len(re.findall("- alert:", FILES["moorage.rules.yml"]))
    house.remove("a", force=True)
    wait_until(lambda: run_query(url, "moorage_plugin_ready") == {"b:latest": 0}, "a removed plugin's series gone")


def fetch_rules(url: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(fetch(f"{url}/api/v1/rules"))["data"]["groups"][0]["rules"]
    return found


def test_the_guide_has_the_command_and_the_setting() -> None:
    assert {SERVE, SETTING} <= set(LINES)
    assert set(FILES) == {"prometheus.yml", "moorage.rules.yml"}
    assert len(COMMANDS) >= 5


def test_each_command_of_the_guide_works_on_the_engine_that_it_starts(tmp_path: Path) -> None:
    house, address = EngineProcess(tmp_path), f"127.0.0.1:{free_port()}"
    roots = {"MOORAGE_ROOT": str(house.root), "MOORAGE_EXEC_ROOT": str(house.exec_root)}
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    try:
        words = shlex.split(SERVE.replace("127.0.0.1:9469", address))
        with house.log.open("ab") as output:
            house.child = subprocess.Popen(
                [sys.executable, "-m", *words],
                env={**os.environ, **roots},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        house.wait_until(lambda: house.info()["Moorage"]["Problem"] == "", "the engine has containerd")
        house.create("a")
        house.enable("a")
        house.crash("a", 3)
        house.until_restarted("a", 1)
        for line in COMMANDS:
            moved = line.replace("127.0.0.1:9469", address).replace("/run/moorage/moorage.sock", str(house.socket))
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-ec", moved],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=limit(60),
            )
            # promtool ends with 3 and words on standard error where the linter finds anything
            assert (done.returncode, done.stderr) == (0, ""), f"{line}: {done.stdout}{done.stderr}"
            if line.startswith("curl") and "|" not in line:
                assert 'moorage_plugin_ready{plugin="a:latest"} 1.0' in done.stdout
        house.remove("a", force=True)
        assert house.end(signal.SIGTERM) == 0
    finally:
        house.close()


def test_the_guides_rules_see_a_series_that_is_new(tmp_path: Path) -> None:
    (tmp_path / "moorage.rules.yml").write_text(FILES["moorage.rules.yml"])
    (tmp_path / "scene.yml").write_text("""
rule_files: [moorage.rules.yml]
tests:
  - interval: 1m
    input_series:
      - {series: 'moorage_plugin_exits_total{plugin="a", oom="true"}', values: '_x30 1x30'}
      - {series: 'moorage_plugin_restarts_total{plugin="a"}', values: '0x30 1 2 3 4 5 6x30'}
      - {series: 'moorage_plugins{state="failed", instance="x"}', values: '0x30 1x30'}
    alert_rule_test:
      - {eval_time: 32m, alertname: MooragePluginWantsMemory, exp_alerts: [{exp_labels: {plugin: a, oom: "true"}}]}
      - {eval_time: 50m, alertname: MooragePluginWantsMemory, exp_alerts: []}
      - {eval_time: 36m, alertname: MooragePluginRestartsAgainAndAgain, exp_alerts: [{exp_labels: {plugin: a}}]}
      - {eval_time: 29m, alertname: MooragePluginRestartsAgainAndAgain, exp_alerts: []}
      - {eval_time: 32m, alertname: MooragePluginsDoNotComeUp, exp_alerts: []}
      - {eval_time: 40m, alertname: MooragePluginsDoNotComeUp, exp_alerts: [{exp_labels: {instance: x}}]}
""")
    done = subprocess.run(
        ["promtool", "test", "rules", "scene.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
