"""What a person at a terminal sees: bars, what Ctrl-C has left, and commands for many plugins."""

import json
import os
from pathlib import Path

import pytest

from support.apply_files import push_version, run_moorage
from support.engines import EngineProcess, actor, config
from support.limits import limit
from support.registries import Served
from support.slow_registry import stalling_registry
from support.terminals import Screen, Typist, show

pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("static-cc", "docker-registry"),
    pytest.mark.usefixtures("nothing_else"),
]

CTRL_C = b"\x03"
SHOWS_CURSOR = "\x1b[?25h"
SLOW = ("listen=600000",)


def host(house: EngineProcess) -> tuple[str, str]:
    return "--host", f"unix://{house.socket}"


def states(house: EngineProcess) -> dict[str, str]:
    return {each["Name"]: each["Moorage"]["State"] for each in house.plugins()}


def last_line(screen: Screen) -> str:
    """The last line with a text: click ends the line of ^C by an empty one."""
    return [line for line in screen.lines if line][-1]


def test_h04_ctrl_c_of_an_install_says_that_nothing_was_installed_and_the_bars_end(house: EngineProcess) -> None:
    with stalling_registry() as registry:
        person = Typist(100, *host(house), "install", "-y", registry.remote)
        person.wait_for("Downloading")
        assert registry.stalls.wait(limit(60))
        person.type(CTRL_C)
        screen = person.end()
        assert registry.left.wait(limit(60))
    assert screen.status == 130
    assert last_line(screen) == "moorage: interrupted: nothing was installed"
    assert SHOWS_CURSOR in screen.raw
    assert all(len(line) <= 100 for line in screen.lines)
    assert house.plugins() == []


def test_h04_ctrl_c_of_an_upgrade_says_which_version_the_plugin_has(house: EngineProcess, registry: Served) -> None:
    house.create("p", config())
    with stalling_registry() as stalling:
        person = Typist(80, *host(house), "upgrade", "-y", "--skip-remote-check", "p", stalling.remote)
        person.wait_for("Downloading")
        assert stalling.stalls.wait(limit(60))
        person.type(CTRL_C)
        screen = person.end()
    assert (screen.status, last_line(screen)) == (
        130,
        "moorage: interrupted: plugin p:latest has its previous version",
    )
    remote = f"{registry.host}/t/slow:1"
    push_version(house, remote, *SLOW)
    house.enable("p")
    person = Typist(80, *host(house), "upgrade", "-y", "--restart", "--skip-remote-check", "p", remote)
    house.wait_until(lambda: house.state("p") == "starting", "the new version is tried")
    person.type(CTRL_C)
    screen = person.end()
    assert "plugin p:latest is being changed; the engine completes that, or goes back to what was" in screen.raw
    house.remove("p", force=True)


def test_h04_ctrl_c_of_an_apply_says_what_was_changed_and_what_was_not(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    push_version(house, f"{registry.host}/t/f:1")
    push_version(house, f"{registry.host}/t/slow:1", *SLOW)
    rows = "".join(
        f"- {{reference: '{registry.host}/t/{image}:1', name: {name}}}\n"
        for name, image in (("a", "f"), ("b", "slow"), ("c", "f"))
    )
    (tmp_path / "plugins.yaml").write_text(f"plugins:\n{rows}")
    person = Typist(200, *host(house), "apply", "-f", str(tmp_path / "plugins.yaml"))
    house.wait_until(lambda: {"b:latest": "starting"}.items() <= states(house).items(), "b is tried")
    person.type(CTRL_C)
    screen = person.end()
    assert screen.status == 130
    assert last_line(screen) == (
        "moorage: interrupted: changed: a:latest; completed or rolled back by the engine: b:latest; "
        "not changed: c:latest"
    )
    house.remove("b", force=True)


@pytest.mark.parametrize("columns", [80, 200])
def test_h04_create_of_150_megabytes_shows_a_bar_with_the_total(
    house: EngineProcess, tmp_path: Path, columns: int
) -> None:
    root = tmp_path / "rootfs"
    root.mkdir()
    (root / "actor").write_bytes(actor())
    (root / "actor").chmod(0o755)
    with (root / "large").open("wb") as file:
        os.truncate(file.fileno(), 150_000_000)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    screen = show(columns, *host(house), "create", "large", str(tmp_path))
    assert (screen.status, screen.lines[-1]) == (0, "large"), screen.raw
    bars = [line for line in screen.lines if line.startswith(("Sending", "Sent"))]
    assert any("/15" in line and "MB" in line for line in bars), bars
    assert bars[-1].startswith("Sent")
    assert all(len(line) <= columns for line in screen.lines)
    assert SHOWS_CURSOR in screen.raw


def test_h02_upgrade_all_upgrades_what_came_from_registries_and_continues_after_a_failure(
    house: EngineProcess, registry: Served
) -> None:
    remote = f"{registry.host}/t/moving"
    for name in ("a", "b", "c"):
        push_version(house, f"{remote}-{name}:1", description="old")
        run_moorage(house, "install", "-y", "--alias", name, f"{remote}-{name}:1")
    house.create("own", config(description="own"))
    for name in ("a", "c"):
        push_version(house, f"{remote}-{name}:1", description="new")
    push_version(house, f"{remote}-b:1", "end=3", description="broken")
    done = run_moorage(house, "upgrade", "--all", "-y", "--restart", "-q", status=1)
    assert done.stdout == "a:latest\nc:latest\n"
    assert "cannot upgrade plugin b:latest" in done.stderr
    assert "own" not in done.stderr
    found = {each["Name"]: each["Config"]["Description"] for each in house.plugins()}
    assert found == {"a:latest": "new", "b:latest": "old", "c:latest": "new", "own:latest": "own"}
    assert run_moorage(house, "upgrade", "--all", "a", status=2).stdout == ""


def test_h03_events_of_one_plugin_by_name_id_or_the_beginning_of_it(house: EngineProcess) -> None:
    for name in ("one", "two"):
        house.create(name, config())
    id = house.inspect("one")["Id"]
    for text in ("plugin=one", "plugin=one:latest", f"plugin={id}", f"plugin={id[:8]}", "name=one"):
        done = run_moorage(
            house, "events", "--since", "1h", "--until", "0s", "--filter", text, "--format", "{{.Name}} {{.ID}}"
        )
        assert set(done.stdout.splitlines()) == {f"one:latest {id}"}, text
    several = run_moorage(
        house, "events", "--since", "1h", "--until", "0s", "-f", "plugin=one", "-f", "plugin=two", "-f", "event=create",
        "--format", "{{.Name}}",
    )  # fmt: skip
    assert several.stdout.splitlines() == ["one:latest", "two:latest"]
