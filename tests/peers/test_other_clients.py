"""What other projects' tests of plugins check, compared on a real dockerd and on Moorage: own assertions, no code."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from peers.dockerd import Dockerd
from peers.test_docker_cli import clis, directories, run
from support.engines import EngineProcess, config
from support.foreground import wait_until

__all__ = ("directories",)  # fixtures

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc")]

EVENTS = ["--filter", "type=plugin", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "bounds", [["--since", "0", "--until", "0s"], ["--until", "0s"], ["--since", "1h", "--until", "0s"]]
)
@pytest.mark.parametrize("cli", clis(), ids=lambda path: Path(path).parent.name)
def test_case_248_226_docker_events_shows_what_is_buffered(
    dockerd: Dockerd, house: EngineProcess, directories: dict[str, str], bounds: list[str], cli: str
) -> None:
    seen: dict[Path, list[str]] = {}
    name = f"h{len(bounds)}{bounds[1][0]}{clis().index(cli)}:1"
    for host in (dockerd.address, house.socket):
        for words in (f"plugin create {name} {directories['DIR']}", f"plugin rm {name}"):
            assert run(cli, host, words.split())[0] == 0

        def shows_both(host: Path = host) -> bool:  # the command cuts "now" to a whole second
            status, text = run(cli, host, ["events", *bounds, "--filter", f"plugin={name}", *EVENTS])
            assert status == 0
            seen[host] = text.splitlines()[-2:]
            return len(seen[host]) == 2

        wait_until(shows_both, "both events are in the past")
        assert seen[host] == [f"plugin create {name}", f"plugin remove {name}"]


@pytest.mark.parametrize("cli", clis(), ids=lambda path: Path(path).parent.name)
def test_case_251_docker_info_shows_us_without_an_error(house: EngineProcess, cli: str) -> None:
    status, text = run(cli, house.socket, ["info"])
    assert status == 0, text
    for expected in ("Server Version:", "Logging Driver:", "Cgroup Driver:", "127.0.0.0/8", "Live Restore Enabled:"):
        assert expected in text
    assert "WARNING" not in text


def test_case_251_info_has_the_fields_that_a_daemons_info_has(dockerd: Dockerd, house: EngineProcess) -> None:
    moorage = house.info()
    docker = json.loads(
        subprocess.run(
            ["docker", "-H", f"unix://{dockerd.address}", "info", "--format", "{{json .}}"],
            capture_output=True,
            check=True,
        ).stdout
    )
    later = {"CDISpecDirs", "Containerd"}  # of a daemon that is newer than the one here
    removed = {  # of an older one, and taken out since (the history of the API says when), or of the client
        "BridgeNfIptables", "BridgeNfIp6tables", "KernelMemory", "KernelMemoryTCP", "ClusterStore", "ClusterAdvertise",
        "HttpProxy", "ClientInfo", "SystemStatus", "DefaultAddressPools", "CpuCfsPeriod", "CpuCfsQuota",
    }  # fmt: skip
    assert set(docker) - removed - set(moorage) <= {"ServerErrors"}
    for key in set(docker) & set(moorage) - later:
        assert isinstance(moorage[key], type(docker[key])) or None in (moorage[key], docker[key]), key


@pytest.mark.parametrize("path", ["/plugins/foobar/set", "/plugins/foobar/upgrade", "/plugins/pull"])
def test_case_253_bodies_that_are_wrong_are_refused_in_dockers_words(house: EngineProcess, path: str) -> None:
    """Source: what moby's integration/plugin/common/plugin_test.go expects."""
    for body, kind, text in (
        ("[]", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (
            "{invalid json",
            "application/json",
            "invalid JSON: invalid character 'i' looking for beginning of object key",
        ),
        ("[] trailing content", "application/json", "unexpected content after JSON"),
        ("{}", "application/json", "invalid JSON: json: cannot unmarshal object into Go value of type "),
    ):
        status, raw = house.request("POST", path, body, headers={"Content-Type": kind})
        assert status == 400
        assert text in json.loads(raw)["message"]
    status, _ = house.request("POST", path, "", headers={"Content-Type": "application/json"})
    assert status < 500


@pytest.mark.parametrize("key", ["enable", "enabled"])
@pytest.mark.parametrize("form", ['{"%s":{"true":true}}', '{"%s":["true"]}', '{"%s":["1"]}'])
def test_case_234_both_spellings_and_both_forms_of_the_filter_are_known(
    house: EngineProcess, key: str, form: str
) -> None:
    house.create("filtered", config())
    house.enable("filtered")
    found = house.request_json("GET", "/plugins?filters=" + (form % key).replace('"', "%22"))
    assert [each["Name"] for each in found if each["Name"] == "filtered:latest"] == ["filtered:latest"]
    house.disable("filtered")
    found = house.request_json("GET", "/plugins?filters=" + (form % key).replace('"', "%22"))
    assert [each["Name"] for each in found if each["Name"] == "filtered:latest"] == []
    house.remove("filtered")


@pytest.mark.parametrize("version", ["1.24", "1.41", "1.47", "1.48", "1.52", "1.55"])
def test_case_252_every_published_version_is_spoken(house: EngineProcess, version: str) -> None:
    assert house.request_json("GET", f"/v{version}/version")["ApiVersion"] == "1.55"
    if version == "1.24":
        return  # the command has no plugins before 1.25
    environment = {"DOCKER_API_VERSION": version, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["docker", "-H", f"unix://{house.socket}", "plugin", "ls"], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_docker_py_a_plugin_is_made_set_enabled_and_removed(house: EngineProcess) -> None:
    """Source: what docker-py's tests/integration/api_plugin_test.py expects, without a registry."""

    def inspect() -> Any:
        return house.inspect("docker-sdk-py/dummy")

    house.create("docker-sdk-py/dummy", config(env=[{"name": "DEBUG", "settable": ["value"], "value": "0"}]))
    assert inspect()["Config"]["Entrypoint"] == ["/actor"]
    assert inspect()["Enabled"] is False
    house.set("docker-sdk-py/dummy", "DEBUG=1")
    assert "DEBUG=1" in inspect()["Settings"]["Env"]
    house.enable("docker-sdk-py/dummy", 0)
    assert inspect()["Enabled"] is True
    assert house.request("POST", "/plugins/docker-sdk-py/dummy/enable?timeout=0")[0] == 409
    house.disable("docker-sdk-py/dummy")
    assert house.request("POST", "/plugins/docker-sdk-py/dummy/disable")[0] == 409
    assert "Config" in next(each for each in house.plugins() if each["Name"] == "docker-sdk-py/dummy:latest")
    house.remove("docker-sdk-py/dummy", force=True)
    assert house.request("GET", "/plugins/docker-sdk-py/dummy/json")[0] == 404


def test_case_env_a_variable_without_a_value_is_null_for_clients(house: EngineProcess) -> None:
    """Source: moby's api/swagger.yaml, PluginEnv.Value is nullable."""
    house.create("nulls", config(env=[{"name": "LATER", "settable": ["value"]}, {"name": "EMPTY", "value": ""}]))
    document = house.inspect("nulls")
    assert [(each["Name"], each["Value"]) for each in document["Config"]["Env"]] == [("LATER", None), ("EMPTY", "")]
    assert document["Settings"]["Env"] == ["EMPTY="]
    house.remove("nulls")
