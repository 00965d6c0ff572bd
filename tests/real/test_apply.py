"""One file for many machines: ``moorage apply`` against a real engine and Debian's docker-registry."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.apply_files import moorage_command, push_version, run_moorage
from support.engines import EngineProcess, config
from support.foreground import wait_until
from support.limits import limit
from support.registries import Served

pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("static-cc", "docker-registry"),
    pytest.mark.usefixtures("nothing_else"),
]

ENV = [{"name": "A", "value": "0", "settable": ["value"]}, {"name": "T", "settable": ["value"]}]
SICK = "  health: {call: err/sick, interval: 1s, timeout: 1s, start-period: 0s, retries: 1}\n"
WELL = "  health: {call: health, interval: 1s, timeout: 1s, start-period: 0s, retries: 1}\n"


class Setup:
    """An engine, a registry with versions 1 (good), 2 (good) and bad (exits at once), and a file."""

    def __init__(self, house: EngineProcess, registry: Served, folder: Path) -> None:
        self.house, self.host, self.file = house, registry.host, folder / "plugins.yaml"

    def write(self, text: str) -> None:
        self.file.write_text(text.replace("R/", f"{self.host}/t/"))

    def apply(self, *options: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        return run_moorage(self.house, "apply", "-f", str(self.file), *options, status=status)

    def checks(self, *options: str, status: int = 0) -> list[Any]:
        done = run_moorage(self.house, "--json", "apply", "--check", "-f", str(self.file), *options, status=status)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def names(self) -> list[str]:
        return [each["Name"] for each in self.house.plugins()]


@pytest.fixture(scope="module")
def pushed(house: EngineProcess, registry: Served) -> Served:
    for tag, arguments in (("1", ()), ("2", ()), ("bad", ("end=3",))):
        push_version(house, f"{registry.host}/t/f:{tag}", *arguments, description=tag, env=ENV)
    return registry


@pytest.fixture
def fleet(house: EngineProcess, pushed: Served, tmp_path: Path) -> Setup:
    return Setup(house, pushed, tmp_path)


def test_f01_wait_exits_with_0_once_all_are_healthy_and_with_1_for_one_that_is_not(fleet: Setup) -> None:
    fleet.write(f"plugins:\n- reference: R/f:1\n  name: p\n{WELL}")
    fleet.apply("--wait")
    assert fleet.house.more("p")["Health"]["Status"] == "healthy"
    sick = {"Checks": [{"Kind": "call", "Method": "err/sick"}]}
    fleet.house.request_own("PUT", "p", "policy", {"health": sick})
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n")
    assert "is unhealthy: err/sick: sick" in fleet.apply("--wait=30s", status=1).stderr
    assert fleet.apply().stdout == "= p:latest\n"


def test_f01_f05_what_is_not_healthy_in_time_is_rolled_back_with_status_3(fleet: Setup) -> None:
    (fleet.file.parent / "token").write_text("s3cr3t")
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n  settings: {A: 1}\n  secrets: {T: token}\n")
    fleet.apply()
    fleet.write(f"plugins:\n- reference: R/f:2\n  name: p\n  settings: {{A: 2}}\n  policy: {{memory: 64m}}\n{SICK}")
    assert "what was before is current again" in fleet.apply("--wait=30s", status=3).stderr
    plugin = fleet.house.inspect("p")
    assert (plugin["Enabled"], plugin["Config"]["Description"]) == (True, "1")
    assert {"A=1", "T=s3cr3t"} <= set(fleet.house.call("p", "env").splitlines())
    policy = plugin["Moorage"]["Policy"]
    assert (policy["MemoryBytes"], policy["Health"]["Checks"]) == (0, [])


def test_f05_settings_alone_are_rolled_back_by_the_same_mechanism(fleet: Setup) -> None:
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n  settings: {A: 1}\n")
    fleet.apply()
    image = fleet.house.more("p")["Digest"]
    fleet.write(f"plugins:\n- reference: R/f:1\n  name: p\n  settings: {{A: 2}}\n{SICK}")
    (line,) = (json.loads(each) for each in fleet.apply("--wait=30s", "--json", status=3).stdout.splitlines())
    assert (line["Done"], line["RolledBack"]) == (False, True)
    assert "A=1" in fleet.house.call("p", "env").splitlines()
    assert fleet.house.more("p")["Digest"] == image
    fleet.house.disable("p")
    fleet.house.enable("p")  # its package and its root are all there


def test_f05_an_installation_that_does_not_work_is_removed_again_and_the_rest_is_left_alone(fleet: Setup) -> None:
    text = "plugins:\n- reference: R/f:1\n  name: a\n- reference: R/f:bad\n  name: b\n- reference: R/f:2\n  name: c\n"
    fleet.write(text)
    done = fleet.apply(status=3)
    assert "it is removed again; not changed: c:latest" in done.stderr
    assert fleet.names() == ["a:latest"]
    fleet.write(text.replace("f:bad", "f:2"))
    fleet.apply()
    assert fleet.names() == ["a:latest", "b:latest", "c:latest"]
    pids = [fleet.house.more(each)["Pid"] for each in "abc"]
    assert fleet.apply().stdout == "= a:latest\n= b:latest\n= c:latest\n"
    assert [fleet.house.more(each)["Pid"] for each in "abc"] == pids


def test_f05_nothing_is_changed_where_one_package_cannot_be_fetched(fleet: Setup) -> None:
    fleet.write("plugins:\n- reference: R/f:1\n  name: a\n- reference: R/f:none\n  name: b\n")
    assert "nothing was changed" in fleet.apply(status=1).stderr
    assert fleet.names() == []


def test_f05_what_is_fetched_is_protected_from_collection_until_a_plugin_has_it(fleet: Setup) -> None:
    house, remote = fleet.house, f"{fleet.host}/t/f:2"

    def leases() -> list[str]:
        address = str(house.exec_root / "containerd/c.sock")
        command = ["ctr", "-a", address, "-n", "plugins.moby", "leases", "list"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        return [line for line in lines if "moorage-fetched-" in line]

    others = {line.split()[0] for line in leases()}  # of applies that failed
    for _ in range(2):
        status, raw = house.request("POST", f"/moorage/v1/fetch?remote={remote}")
        assert (status, b"error" in raw) == (200, False)
    (lease,) = [line for line in leases() if line.split()[0] not in others]
    assert "containerd.io/gc.expire=" in lease
    fleet.write("plugins:\n- reference: R/f:2\n  name: a\n")
    fleet.apply()
    assert lease not in leases()


def test_f05_a_plugin_in_use_is_not_changed(fleet: Setup) -> None:
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n")
    fleet.apply()
    fleet.house.request_own("POST", "p", "holders", {"owner": "volume v1"})
    fleet.write("plugins:\n- reference: R/f:2\n  name: p\n")
    assert "plugin p:latest is in use by volume v1" in fleet.apply(status=1).stderr
    assert fleet.house.inspect("p")["Config"]["Description"] == "1"


def test_f02_check_says_what_differs_what_is_unhealthy_and_changes_nothing(fleet: Setup) -> None:
    fleet.write(f"plugins:\n- reference: R/f:1\n  name: p\n  settings: {{A: 1}}\n{WELL}")
    (found,) = fleet.checks(status=4)
    assert (found["Result"], found["Actual"]) == ("drift", None)
    assert fleet.names() == []
    fleet.apply("--wait")
    (found,) = fleet.checks()
    assert (found["Result"], found["Why"], found["Actual"]["Health"]) == ("ok", [], "healthy")
    assert found["Desired"]["Settings"] == found["Actual"]["Settings"] == {"A": "1"}
    fleet.write(f"plugins:\n- reference: R/f:2\n  name: p\n  settings: {{A: 1}}\n{WELL}")
    (found,) = fleet.checks(status=4)
    assert found["Why"] == [f"reference: {fleet.host}/t/f:1 -> {fleet.host}/t/f:2"]
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n")
    fleet.house.request_own("PUT", "p", "policy", {"health": {"Checks": [{"Kind": "call", "Method": "err/sick"}]}})
    fleet.house.wait_until(lambda: fleet.house.more("p")["Health"]["Status"] == "unhealthy", "it is unhealthy")
    (found,) = fleet.checks(status=5)
    assert (found["Result"], found["Why"]) == ("unhealthy", ["health: unhealthy: err/sick: sick"])
    assert fleet.apply("--check", status=5).stdout.splitlines()[0] == "! p:latest"


def test_f02_check_exits_with_1_where_it_cannot_compare(fleet: Setup, tmp_path: Path) -> None:
    fleet.write("plugins: x\n")
    fleet.apply("--check", status=1)
    fleet.write("plugins: []\n")
    command = moorage_command(tmp_path / "no.sock", "apply", "--check", "-f", str(fleet.file))
    assert subprocess.run(command, capture_output=True, timeout=limit(30)).returncode == 1


def test_f04_prune_removes_what_the_same_file_made_and_nothing_else(fleet: Setup) -> None:
    fleet.house.create("mine:1", config())
    fleet.write("plugins:\n- reference: R/f:1\n  name: a\n- reference: R/f:2\n  name: b\n")
    fleet.apply()
    other = fleet.file.with_name("other.yaml")
    other.write_text(f"name: other\nplugins:\n- reference: {fleet.host}/t/f:1\n  name: c\n")
    run_moorage(fleet.house, "apply", "-f", str(other))
    assert fleet.house.more("a")["AppliedBy"] == str(fleet.file)
    assert (fleet.house.more("c")["AppliedBy"], fleet.house.more("mine:1")["AppliedBy"]) == ("other", "")
    fleet.write("plugins:\n- reference: R/f:1\n  name: a\n")
    assert fleet.apply().stdout == "= a:latest\n"
    assert [each["Name"] for each in fleet.checks("--prune", status=4) if each["Result"] == "drift"] == ["b:latest"]
    fleet.apply("--prune")
    assert fleet.names() == ["a:latest", "c:latest", "mine:1"]
    no_name = "plugins: []\n"
    done = run_moorage(fleet.house, "apply", "-f", "-", "--prune", stdin=no_name, status=1)
    assert "cannot prune for standard input: give the file a name" in done.stderr
    run_moorage(fleet.house, "apply", "-f", "-", "--prune", stdin=f"name: other\n{no_name}")
    assert fleet.names() == ["a:latest", "mine:1"]


def test_f04_adopt_takes_plugins_over_so_that_a_later_prune_removes_them(fleet: Setup) -> None:
    both = "name: mine\nplugins:\n- reference: R/f:1\n  name: a\n- reference: R/f:2\n  name: b\n"
    run_moorage(fleet.house, "install", "--alias", "a", f"{fleet.host}/t/f:1")
    fleet.write(both.replace("mine", "other"))
    fleet.apply()  # it finds a, and makes b
    assert [fleet.house.more(each)["AppliedBy"] for each in "ab"] == ["", "other"]
    pids = [fleet.house.more(each)["Pid"] for each in "ab"]
    fleet.write(both)
    fleet.apply("--prune")
    assert [fleet.house.more(each)["AppliedBy"] for each in "ab"] == ["", "other"], (
        "without --adopt nothing is taken over"
    )
    shown = fleet.apply("--adopt", "--dry-run").stdout
    assert shown == "~ a:latest\n    applied by: no file -> mine\n~ b:latest\n    applied by: other -> mine\n"
    fleet.apply("--adopt", "--check", status=4)
    assert fleet.apply("--adopt").stdout == shown
    assert [fleet.house.more(each)["AppliedBy"] for each in "ab"] == ["mine", "mine"]
    assert [fleet.house.more(each)["Pid"] for each in "ab"] == pids
    fleet.write("name: mine\nplugins: []\n")
    fleet.apply("--prune")
    assert fleet.names() == []
    done = run_moorage(fleet.house, "apply", "-f", "-", "--adopt", stdin="plugins: []\n", status=1)
    assert "cannot adopt plugins for standard input: give the file a name" in done.stderr


def test_f04_f05_an_adoption_is_rolled_back_with_the_change_that_does_not_work(fleet: Setup) -> None:
    run_moorage(fleet.house, "install", "--alias", "p", f"{fleet.host}/t/f:1")
    fleet.write("name: mine\nplugins:\n- reference: R/f:bad\n  name: p\n")
    fleet.apply("--adopt", status=3)
    assert fleet.house.more("p")["AppliedBy"] == ""


def test_f04_f05_a_plugin_that_becomes_disabled_stays_disabled_after_a_failed_enable(fleet: Setup) -> None:
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n  enabled: false\n")
    fleet.apply()
    fleet.write("plugins:\n- reference: R/f:bad\n  name: p\n")
    fleet.apply(status=3)
    plugin = fleet.house.inspect("p")
    assert (plugin["Enabled"], plugin["Config"]["Description"]) == (False, "1")
    fleet.write("plugins:\n- reference: R/f:2\n  name: p\n")
    fleet.apply()
    assert fleet.house.state("p") == "ready"
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n  enabled: false\n")
    fleet.apply()
    plugin = fleet.house.inspect("p")
    assert (plugin["Enabled"], plugin["Config"]["Description"]) == (False, "1")


def test_f03_watch_applies_again_when_the_file_changes_and_shows_readiness_by_a_file(fleet: Setup) -> None:
    ready, log = fleet.file.parent / "run/ready", fleet.file.parent / "watch.log"
    ready.parent.mkdir()
    fleet.write("plugins:\n- reference: R/f:1\n  name: p\n")
    words = ("apply", "--watch", "--ready-file", str(ready), "-f", str(fleet.file))
    with log.open("wb") as output:
        watch = subprocess.Popen(moorage_command(fleet.house.socket, *words), stdout=output, stderr=output)
    try:
        wait_until(ready.exists, "it is ready", limit(60))
        assert fleet.house.state("p") == "ready"
        new = fleet.file.with_name("new.yaml")
        new.write_text(fleet.file.read_text().replace("f:1", "f:bad"))
        new.rename(fleet.file)  # as editors and configuration management write
        wait_until(lambda: not ready.exists(), "it is not ready", limit(60))
        assert fleet.house.inspect("p")["Config"]["Description"] == "1"
        fleet.write("plugins:\n- reference: R/f:2\n  name: p\n")
        wait_until(ready.exists, "it is ready again", limit(60))
        assert fleet.house.inspect("p")["Config"]["Description"] == "2"
        began_at = time.monotonic()
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(limit(30)) == 0, log.read_text()
        assert time.monotonic() - began_at < limit(10)
        assert not ready.exists()
    finally:
        watch.kill()
        watch.wait()
