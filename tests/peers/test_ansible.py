"""The role and the playbook of packaging/ansible, run by the real Ansible on three engines of this machine."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.apply_files import push_version
from support.engines import EngineProcess, engine
from support.limits import limit
from support.pages import saved_files, typed_lines
from support.registries import Served

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = ROOT / "packaging/ansible"
COLLECTIONS = Path(sys.prefix, "peers")
PAGE = (ROOT / "docs/guide/rolling-out-with-ansible.md").read_text()

pytestmark = [pytest.mark.real, pytest.mark.extensive, pytest.mark.needs("static-cc", "docker-registry")]

FILE = """name: fleet
plugins:
- reference: {{ registry }}/t/f:{{ version }}
  name: volumes
  health: {call: health, interval: 1s, timeout: 1s, start-period: 0s, retries: 1}
"""


class Fleet:
    """Three engines, an inventory, and a registry with versions 1, 2 and bad."""

    def __init__(self, engines: dict[str, EngineProcess], registry: Served, folder: Path) -> None:
        self.engines, self.registry, self.folder = engines, registry, folder
        (folder / "plugins.yaml").write_text(FILE)
        self.set_versions(dict.fromkeys(engines, "1"))

    def set_versions(self, versions: dict[str, str]) -> None:
        hosts = {
            name: {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "registry": self.registry.host,
                "version": versions[name],
                "moorage_file": str(self.folder / "plugins.yaml"),
                "moorage_path": str(self.folder / name / "plugins.yaml"),
                "moorage_command": str(Path(sys.executable).with_name("moorage")),
                "moorage_host": f"unix://{made.socket}",
            }
            for name, made in self.engines.items()
        }
        (self.folder / "inventory.json").write_text(json.dumps({"moorage": {"hosts": hosts}}))

    def play(self, *words: str | Path, status: int = 0) -> str:
        """What ansible-playbook prints, which exits with this status."""
        command = [Path(sys.executable).with_name("ansible-playbook"), "-i", self.folder / "inventory.json", *words]
        return self.run(command, self.folder, status=status)

    def run(self, command: Sequence[str | Path], directory: Path, *, status: int = 0) -> str:
        """What a command of Ansible prints, in this directory."""
        environment = {
            **os.environ,
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "local"),
            "ANSIBLE_REMOTE_TEMP": str(self.folder / "remote"),
            "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "1",
            "LC_ALL": "C.UTF-8",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit(120), cwd=directory
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def versions(self) -> dict[str, str]:
        """What each engine runs."""
        found = {}
        for name, made in self.engines.items():
            for plugin in made.plugins():
                assert (plugin["Name"], plugin["Moorage"]["State"]) == ("volumes:latest", "ready")
                found[name] = plugin["Config"]["Description"]
        return found


@pytest.fixture
def fleet(registry: Served, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        names = ("node1", "node2", "node3")
        for name in names:
            (tmp_path / name).mkdir()
        engines = {name: stack.enter_context(engine(tmp_path / name)) for name in names}
        for tag, arguments in (("1", ()), ("2", ()), ("bad", ("end=3",))):
            push_version(engines["node1"], f"{registry.host}/t/f:{tag}", *arguments, description=tag)
        yield Fleet(engines, registry, tmp_path)


def test_f06_a_broken_plugin_stops_the_rollout_and_the_next_machine_stays_untouched(fleet: Fleet) -> None:
    rollout = ANSIBLE / "rollout.yml"
    fleet.play(rollout)
    assert fleet.versions() == {"node1": "1", "node2": "1", "node3": "1"}
    assert fleet.play(rollout).count("changed=0") == 3
    pid = fleet.engines["node3"].more("volumes")["Pid"]
    fleet.set_versions({"node1": "2", "node2": "bad", "node3": "2"})
    shown = fleet.play(rollout, status=2)
    assert "what was before is current again" in shown
    assert "node3" not in shown.partition("PLAY RECAP")[2]
    assert fleet.versions() == {"node1": "2", "node2": "1", "node3": "1"}
    assert fleet.engines["node3"].more("volumes")["Pid"] == pid
    fleet.set_versions({"node1": "2", "node2": "2", "node3": "2"})
    assert "changed=0" in fleet.play(rollout, "--check")
    fleet.play(rollout)
    assert fleet.versions() == {"node1": "2", "node2": "2", "node3": "2"}


def test_f06_the_guide_has_the_files_of_the_package() -> None:
    for name, text in saved_files(PAGE).items():
        assert (ANSIBLE / name).read_text().endswith(text), name


def test_f06_the_commands_of_the_guide_roll_out_its_files(fleet: Fleet) -> None:
    """A reader's directory: the role, the three files as the page has them, and what Ansible knows of the machines."""
    reader = fleet.folder / "reader"
    reader.mkdir()
    (reader / "roles").symlink_to(ANSIBLE / "roles")
    for name, text in saved_files(PAGE).items():
        (reader / name).write_text(text.replace("registry.example.org/team/sshfs:1.2", f"{fleet.registry.host}/t/f:1"))
    machines = re.findall(r"node\d\.example\.org", (reader / "inventory.yml").read_text())
    variables = json.loads((fleet.folder / "inventory.json").read_text())["moorage"]["hosts"]
    (reader / "host_vars").mkdir()
    for machine, known in zip(machines, variables.values(), strict=True):
        own = {key: value for key, value in known.items() if key not in ("registry", "version", "moorage_file")}
        (reader / "host_vars" / f"{machine}.json").write_text(json.dumps(own))
    first, check = typed_lines(PAGE)
    shown = fleet.run(["sh", "-c", first], reader)
    assert [shown.partition("PLAY RECAP")[2].count(f"{machine} ") for machine in machines] == [1, 1, 1]
    for made in fleet.engines.values():
        (plugin,) = made.plugins()
        assert (plugin["Moorage"]["Health"]["Status"], plugin["Moorage"]["AppliedBy"]) == ("healthy", "fleet")
    assert fleet.run(["sh", "-c", check], reader).count("changed=0") == 3
    assert fleet.run(["sh", "-c", first], reader).count("changed=0") == 3


def test_f06_the_docker_plugin_module_works_unmodified(fleet: Fleet) -> None:
    made = fleet.engines["node1"]

    def task(**options: Any) -> None:
        module = {"docker_host": f"unix://{made.socket}", "alias": "m", **options}
        module["plugin_name"] = f"{fleet.registry.host}/t/f:1"
        play = {
            "hosts": "node1",
            "gather_facts": False,
            "tasks": [{"community.docker.docker_plugin": module}],
        }
        file = fleet.folder / "module.json"
        file.write_text(json.dumps([play]))
        fleet.play(file)

    task(state="present")
    assert [each["Name"] for each in made.plugins()] == ["m:latest"]
    task(state="enable")
    made.until("m", "ready")
    task(state="disable")
    made.until("m", "disabled")
    task(state="absent")
    assert made.plugins() == []
