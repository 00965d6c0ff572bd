"""packaging/kubernetes: valid by the published schemas, and its commands work as the manifest has them."""

import json
import shutil
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
from support.pages import typed_lines
from support.registries import Served

pytestmark = pytest.mark.real

MANIFESTS = Path(__file__).resolve().parents[2] / "packaging/kubernetes"
PAGE = (MANIFESTS.parents[1] / "docs/guide/rolling-out-with-kubernetes.md").read_text()
SCHEMAS = Path(sys.prefix, "peers/kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict")


def manifest() -> Any:
    return yaml.safe_load((MANIFESTS / "daemonset.yaml").read_text())


def problems(document: Any) -> list[str]:
    def load(uri: str) -> Resource[Any]:
        return Resource.from_contents(json.loads((SCHEMAS / uri.rpartition("/")[2]).read_text()), DRAFT202012)

    kind, version = document["kind"].lower(), document["apiVersion"].replace("/", "-")
    schema = json.loads((SCHEMAS / f"{kind}-{version}.json").read_text())
    registry: Any = Registry
    validator = Draft202012Validator(schema, registry=registry(retrieve=load))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def test_f07_the_daemon_set_is_valid_by_the_published_schema() -> None:
    assert problems(manifest()) == []
    wrong = manifest()
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    assert problems(wrong) != []


@pytest.mark.needs("kubectl")
def test_f07_what_the_commands_of_the_guide_apply_is_valid_and_another_file_is_another_config_map(
    tmp_path: Path,
) -> None:
    show, apply, status = typed_lines(PAGE)
    (tmp_path / "packaging").mkdir()
    shutil.copytree(MANIFESTS, tmp_path / "packaging/kubernetes")

    def rendered() -> dict[str, Any]:
        done = subprocess.run(
            ["sh", "-c", show], capture_output=True, text=True, cwd=tmp_path, timeout=limit(60), check=True
        )
        return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}

    first = rendered()
    assert set(first) == {"ConfigMap", "DaemonSet"}
    assert [problem for each in first.values() for problem in problems(each)] == []
    assert first["ConfigMap"]["data"]["plugins.yaml"] == (MANIFESTS / "plugins.yaml").read_text()
    with (tmp_path / "packaging/kubernetes/plugins.yaml").open("a") as file:
        file.write("- reference: registry.example.org/team/other:1\n")
    second = rendered()
    names = [each["ConfigMap"]["metadata"]["name"] for each in (first, second)]
    assert [name.rpartition("-")[0] for name in names] == ["moorage-plugins", "moorage-plugins"]
    assert names[0] != names[1]
    mounted = [
        [volume["configMap"]["name"] for volume in each["DaemonSet"]["spec"]["template"]["spec"]["volumes"][1:]]
        for each in (first, second)
    ]
    assert mounted == [[names[0]], [names[1]]], "so a change of the file is a rolling update"
    assert apply.split() == ["kubectl", "apply", "-k", show.split()[-1]]
    assert status.split()[-1] == f"daemonset/{first['DaemonSet']['metadata']['name']}"


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
