"""What a real dockerd pushed, installed and upgraded by the unmodified docker command: from dockerd, and from us."""

import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers.dockerd import Dockerd
from peers.test_docker_cli import clis, make_directory, no_nulls, run
from support.contents import contents_of, wait_for
from support.engines import EngineProcess, config
from support.limits import limit
from support.packages import IMAGE, make, push
from support.registries import Served, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "docker-registry", "static-cc")]

GRANT = "--grant-all-permissions"
NEEDS_ROOT = {"mounts": [{"name": "data", "source": "/", "destination": "/d", "type": "bind", "options": ["rbind"],
                          "settable": ["source"]}]}  # fmt: skip


BOUND = "- bind mount: [/ on /d, read-write (rbind)]\n"


@dataclass(frozen=True)
class Pushed:
    """What dockerd put into a registry."""

    name: str
    digest: str
    """Of v1."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_registry(tmp_path_factory.mktemp("registry") / "plain") as served:
        yield served


@pytest.fixture(scope="module")
def pushed(dockerd: Dockerd, registry: Served, tmp_path_factory: pytest.TempPathFactory) -> Pushed:
    base, name, cli = tmp_path_factory.mktemp("plugins"), f"{registry.host}/t/p", clis()[0]
    level = {"name": "DEBUG", "value": "0", "settable": ["value"]}
    documents = {
        "v1": config(env=[level], network={}, **NEEDS_ROOT),
        "v2": config(env=[level, {"name": "NEW", "value": "lorem"}], network={}, **NEEDS_ROOT),
    }
    for tag, document in documents.items():
        directory = make_directory(base / f"pushed-{tag}", document)
        for words in (
            ["plugin", "create", f"{name}:{tag}", str(directory)],
            ["plugin", "push", f"{name}:{tag}"],
            ["plugin", "rm", f"{name}:{tag}"],
        ):
            status, text = run(cli, dockerd.address, words)
            assert status == 0, text
    push(registry.host, "t/image", "1", make(config_type=IMAGE))
    return Pushed(name, digest_of(registry.host, "/v2/t/p/manifests/v1"))


def digest_of(host: str, path: str) -> str:
    """The digest of a manifest that a registry announces."""
    connection = http.client.HTTPConnection(host, timeout=limit(60))
    try:
        connection.request("GET", path, headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"})
        answer = connection.getresponse()
        answer.read()
        return answer.headers["Docker-Content-Digest"]
    finally:
        connection.close()


def both(cli: str, dockerd: Dockerd, house: EngineProcess, *words: str) -> str:
    """The same command for both, with the same end: the exit status, and what is printed beside progress."""
    docker, moorage = (run(cli, host, list(words)) for host in (dockerd.address, house.socket))
    shown = said(moorage[1])
    if "requesting the following privileges" in moorage[1]:  # a listed difference: what a mount is, beside its source
        assert BOUND in shown, words
        shown = shown.replace(BOUND, "")
    assert (moorage[0], shown) == (docker[0], said(docker[1])), words
    return moorage[1]


def said(text: str) -> str:
    """Without progress, whose lines come in another order; the prompt of the newer command has other blanks."""
    lines = [line.strip() for line in text.splitlines() if not re.match(r"(ID12|v\d|[0-9a-f]{12}): |Digest: ", line)]
    return "\n".join(line for line in lines if line)


def inspect(cli: str, host: Path, name: str) -> Any:
    status, text = run(cli, host, ["plugin", "inspect", name])
    assert status == 0, text
    return json.loads(text)[0]


@pytest.mark.parametrize("cli", clis())
def test_a01_case_089_the_docker_command_installs_and_upgrades_alike(
    cli: str, dockerd: Dockerd, house: EngineProcess, pushed: Pushed
) -> None:
    name = pushed.name
    empty = contents_of(house)
    both(cli, dockerd, house, "plugin", "install", f"{name}:v1")  # the question is not answered
    text = both(cli, dockerd, house, "plugin", "install", GRANT, "--alias", "s", f"{name}:v1", "DEBUG=1")
    assert text.endswith(f"Installed plugin {name}:v1")
    assert re.search(r"^ID12: Complete$", text, re.MULTILINE)
    both(cli, dockerd, house, "plugin", "ls", "--format", "{{.Name}}|{{.Enabled}}")
    both(cli, dockerd, house, "plugin", "install", GRANT, "--alias", "s", f"{name}:v1")  # the name is taken
    docker, moorage = (inspect(cli, host, "s") for host in (dockerd.address, house.socket))
    assert plain(moorage) == no_nulls(plain(docker))
    both(cli, dockerd, house, "plugin", "upgrade", GRANT, "--skip-remote-check", "s", f"{name}:v2")  # it is enabled
    both(cli, dockerd, house, "plugin", "disable", "s")
    both(cli, dockerd, house, "plugin", "set", "s", "data.source=/tmp")
    both(cli, dockerd, house, "plugin", "upgrade", GRANT, "--skip-remote-check", "s", f"{name}:v2")
    docker, moorage = (inspect(cli, host, "s") for host in (dockerd.address, house.socket))
    assert moorage["Config"]["Env"] == no_nulls(docker["Config"]["Env"])
    assert docker["Settings"]["Env"] == ["DEBUG=1"]
    assert moorage["Settings"]["Env"] == ["DEBUG=1", "NEW=lorem"], "docs/reference/docker-differences.md, upgrade"
    assert (moorage["PluginReference"], moorage["Settings"]["Mounts"][0]["Source"]) == (f"{name}:v2", "/tmp")
    both(cli, dockerd, house, "plugin", "enable", "s")
    both(cli, dockerd, house, "plugin", "install", GRANT, "--disable", f"{name}:v1")
    both(cli, dockerd, house, "plugin", "rm", f"{name}:v1")
    both(cli, dockerd, house, "plugin", "rm", "-f", "s")
    wait_for(house, empty)


def plain(document: Any) -> Any:
    """Without what only one side has, and what the table of differences names."""
    made = {key: value for key, value in document.items() if key not in ("Moorage", "Id")}
    made["Config"] = {key: value for key, value in made["Config"].items() if key not in ("DockerVersion", "rootfs")}
    return made


@pytest.mark.parametrize("cli", clis())
def test_case_065_case_066_the_docker_command_installs_by_digest_and_no_images(
    cli: str, house: EngineProcess, pushed: Pushed, registry: Served
) -> None:
    status, text = run(cli, house.socket, ["plugin", "install", GRANT, f"{pushed.name}@{pushed.digest}"])
    assert status == 0, text
    shown = inspect(cli, house.socket, pushed.name)
    assert (shown["Name"], shown["Enabled"]) == (f"{pushed.name}:latest", True)
    assert house.more(f"{pushed.name}:latest")["Digest"] == pushed.digest
    assert run(cli, house.socket, ["plugin", "rm", "-f", pushed.name])[0] == 0
    status, text = run(cli, house.socket, ["plugin", "install", GRANT, f"{registry.host}/t/image:1"])
    assert status == 1
    assert "is not a plugin but an image" in text
    assert f'Encountered remote "{IMAGE}"(image) when fetching' in text, "case 301: older commands look for it"


@pytest.mark.parametrize("cli", clis())
def test_case_054_a_wrong_setting_is_named_and_can_be_fixed(cli: str, house: EngineProcess, pushed: Pushed) -> None:
    status, text = run(cli, house.socket, ["plugin", "install", GRANT, "--alias", "b", f"{pushed.name}:v1", "BAD=1"])
    assert status == 1
    assert 'setting "BAD" not found in the plugin configuration; what can be set: DEBUG' in text
    assert house.inspect("b")["Enabled"] is False
    for words in (["set", "b", "DEBUG=2"], ["enable", "b"], ["rm", "-f", "b"]):
        assert run(cli, house.socket, ["plugin", *words])[0] == 0
