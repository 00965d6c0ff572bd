"""Labels of plugins, from every command that sets them, over every change of a plugin."""

import json
from pathlib import Path

import pytest

from support.apply_files import push_version, run_moorage
from support.engines import EngineProcess, config
from support.registries import Served

pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("static-cc", "docker-registry"),
    pytest.mark.usefixtures("nothing_else"),
]

SICK = "  health: {call: err/sick, interval: 1s, timeout: 1s, start-period: 0s, retries: 1}\n"


@pytest.fixture(scope="module")
def remote(house: EngineProcess, registry: Served) -> str:
    """The repository of versions 1, 2 and bad."""
    for tag, arguments in (("1", ()), ("2", ()), ("bad", ("end=3",))):
        push_version(house, f"{registry.host}/t/l:{tag}", *arguments, description=tag)
    return f"{registry.host}/t/l"


def listed(house: EngineProcess, *filters: str) -> list[str]:
    words = [word for each in filters for word in ("--filter", f"label={each}")]
    return run_moorage(house, "ls", *words, "--format", "{{.Name}}").stdout.splitlines()


def test_h01_labels_of_install_filter_ls_and_events_and_stay_over_an_upgrade(house: EngineProcess, remote: str) -> None:
    run_moorage(house, "install", "-y", "--alias", "p", "-l", "team=storage", "--label", "beta", f"{remote}:1")
    run_moorage(house, "install", "-y", "--alias", "q", "--label", "team=net", f"{remote}:1")
    assert house.more("p")["Labels"] == {"team": "storage", "beta": ""}
    assert listed(house, "team") == ["p:latest", "q:latest"]
    assert listed(house, "team=net") == ["q:latest"]
    assert listed(house, "team", "beta") == ["p:latest"], "as in docker, all must match"
    assert listed(house, "beta=x") == []
    run_moorage(house, "upgrade", "-y", "--restart", "p", f"{remote}:2")
    assert house.inspect("p")["Config"]["Description"] == "2"
    assert house.more("p")["Labels"] == {"team": "storage", "beta": ""}
    events = run_moorage(
        house, "events", "--since", "1h", "--until", "0s", "-f", "label=team=storage", "-f", "event=upgrade", "--json"
    )
    (event,) = map(json.loads, events.stdout.splitlines())
    assert {"name": "p:latest", "team": "storage", "beta": ""}.items() <= event["Actor"]["Attributes"].items()
    row = run_moorage(house, "ls", "--format", "{{.Labels}}", "-f", "name=p:").stdout
    assert row == "team=storage,beta=\n"


def test_h01_labels_change_at_once_also_of_a_plugin_that_runs_and_after_a_kill(house: EngineProcess) -> None:
    house.create("p", config())
    house.enable("p")
    pid = house.more("p")["Pid"]
    run_moorage(house, "set", "p", "--label", "a=1", "--label", "name=x")
    run_moorage(house, "set", "p", "--label", "a=2", "--label-rm", "name", "--label-rm", "absent")
    assert house.more("p")["Labels"] == {"a": "2"}
    refused = run_moorage(house, "set", "p", "--label", "a b=1", status=1)
    assert "cannot have the label 'a b': a key has 1 to 256 characters" in refused.stderr
    assert run_moorage(house, "set", "p", "--label", "=1", status=2).stdout == ""
    house.end(9)
    house.start()
    house.wait_until(lambda: house.more("p")["Pid"] == pid, "the plugin is restored")
    assert house.more("p")["Labels"] == {"a": "2"}


def test_h01_create_takes_labels(house: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config()))
    run_moorage(house, "create", "--label", "a=1", "made", str(tmp_path))
    assert house.more("made")["Labels"] == {"a": "1"}
    run_moorage(house, "create", "--label", "a\n=1", "other", str(tmp_path), status=1)
    assert [each["Name"] for each in house.plugins()] == ["made:latest"], "labels are checked first"


def test_h01_ensure_has_the_labels_or_refuses(house: EngineProcess, remote: str) -> None:
    words = ("install", "-y", "--ensure", "--alias", "p", f"{remote}:1", "--label")
    run_moorage(house, *words, "a=1")
    run_moorage(house, *words, "a=1")
    assert "already exists with other labels" in run_moorage(house, *words, "a=2", status=1).stderr


def test_h01_f05_labels_of_a_file_are_all_that_a_plugin_has_and_are_rolled_back(
    house: EngineProcess, remote: str, tmp_path: Path
) -> None:
    file = tmp_path / "plugins.yaml"

    def apply(more: str, *words: str, tag: str = "1", status: int = 0) -> str:
        file.write_text(f"plugins:\n- reference: {remote}:{tag}\n  name: p\n{more}")
        return run_moorage(house, "apply", "-f", str(file), *words, status=status).stdout

    apply("  labels: {a: 1, b: two words}\n")
    pid = house.more("p")["Pid"]
    assert house.more("p")["Labels"] == {"a": "1", "b": "two words"}
    assert apply("  labels: {a: 1, b: two words}\n") == "= p:latest\n"
    assert apply("") == "= p:latest\n", "what the file does not say does not change"
    assert "labels: a=1, b=two words -> c=" in apply("  labels: {c: ''}\n", "--dry-run")
    apply("  labels: {c: ''}\n", "--check", status=4)
    apply("  labels: {c: ''}\n")
    assert (house.more("p")["Labels"], house.more("p")["Pid"]) == ({"c": ""}, pid)
    apply(f"  labels: {{d: x}}\n{SICK}", "--wait=30s", status=3)
    apply("  labels: {d: x}\n", tag="bad", status=3)
    assert house.more("p")["Labels"] == {"c": ""}
    exported = run_moorage(house, "export").stdout
    file.write_text(exported)
    assert run_moorage(house, "apply", "-f", str(file), "--check").stdout == "= p:latest\n"
    assert '"c": ""' in exported


def test_h06_f05_where_a_file_sends_the_output_is_applied_and_rolled_back(
    house: EngineProcess, remote: str, tmp_path: Path
) -> None:
    file = tmp_path / "plugins.yaml"
    text = f"plugins:\n- reference: {remote}:1\n  name: p\n  policy: {{log: %s}}\n"
    file.write_text(text % "journald")
    run_moorage(house, "apply", "-f", str(file))
    target = house.root / "logs" / house.inspect("p")["Id"] / "target"
    assert target.read_text().split("\0")[0] == "journald"
    file.write_text(text.replace(":1\n", ":bad\n") % "syslog")
    run_moorage(house, "apply", "-f", str(file), status=3)
    assert target.read_text().split("\0")[0] == "journald"
    target.unlink()  # as after a kill between the record and this file
    house.end(9)
    house.start()
    assert target.read_text().split("\0")[0] == "journald"
    file.write_text(text % "file")
    run_moorage(house, "apply", "-f", str(file))
    assert not target.exists()
