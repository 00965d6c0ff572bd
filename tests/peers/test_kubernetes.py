"""packaging/kubernetes: valid by the published schemas, and its commands work as the manifest has them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from support.apply_files import moorage_command, push_version
from support.engines import EngineProcess
from support.foreground import wait_until
from support.limits import limit
from support.registries import Served

pytestmark = pytest.mark.real

MANIFESTS = Path(__file__).resolve().parents[2] / "packaging/kubernetes"
SCHEMAS = Path(sys.prefix, "peers/kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict")


def manifest() -> Any:
    return yaml.safe_load((MANIFESTS / "daemonset.yaml").read_text())


def problems(document: Any) -> list[str]:
    def load(uri: str) -> Resource[Any]:
        return Resource.from_contents(json.loads((SCHEMAS / uri.rpartition("/")[2]).read_text()), DRAFT202012)

    kind = document["kind"].lower()
    schema = json.loads((SCHEMAS / f"{kind}-apps-v1.json").read_text())
    registry: Any = Registry
    validator = Draft202012Validator(schema, registry=registry(retrieve=load))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_f07_the_daemon_set_is_valid_by_the_published_schema() -> None:
    assert problems(manifest()) == []
    wrong = manifest()
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    assert problems(wrong) != []


def test_f07_it_is_a_rolling_update_with_readiness_by_check() -> None:
    spec = manifest()["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    (container,) = spec["template"]["spec"]["containers"]
    assert container["readinessProbe"]["exec"]["command"][:3] == ["moorage", "apply", "--check"]


@pytest.fixture
def plugins(house: EngineProcess, registry: Served, tmp_path: Path) -> Iterator[Path]:
    """A ConfigMap as kubelet mounts it: a link to a link, which is renamed."""
    push_version(house, f"{registry.host}/t/f:1")
    (tmp_path / "..1").mkdir()
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "plugins.yaml").symlink_to("..data/plugins.yaml")
    (tmp_path / "..1/plugins.yaml").write_text(f"name: f\nplugins: [{{name: p, reference: {registry.host}/t/f:1}}]\n")
    yield tmp_path / "plugins.yaml"
    for each in house.plugins():
        house.remove(each["Name"], force=True)


@pytest.mark.needs("static-cc", "docker-registry")
def test_f07_the_container_applies_and_becomes_ready_and_sees_a_new_config_map(
    house: EngineProcess, plugins: Path
) -> None:
    (container,) = manifest()["spec"]["template"]["spec"]["containers"]

    def words(command: list[str]) -> list[str]:
        return moorage_command(house.socket, *(str(plugins) if each.endswith(".yaml") else each for each in command))

    probe = words(container["readinessProbe"]["exec"]["command"][1:])

    def is_ready() -> bool:
        return subprocess.run(probe, capture_output=True, timeout=limit(30)).returncode == 0

    assert not is_ready()
    with (plugins.parent / "log").open("wb") as log:
        pod = subprocess.Popen(words(container["args"]), stdout=log, stderr=log)
    try:
        wait_until(is_ready, "it is ready", limit(60))
        (plugins.parent / "..2").mkdir()
        (plugins.parent / "..2/plugins.yaml").write_text("name: f\nplugins: []\n")
        (plugins.parent / "..tmp").symlink_to("..2")
        (plugins.parent / "..tmp").rename(plugins.parent / "..data")
        wait_until(lambda: house.plugins() == [], "it follows the new file", limit(60))
    finally:
        pod.terminate()
        assert pod.wait(limit(30)) == 0
