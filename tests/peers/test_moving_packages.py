"""Packages between Moorage, dockerd, the docker command, skopeo and a registry: nothing of them changes on the way."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from peers.dockerd import Dockerd
from peers.test_docker_cli import clis, make_directory, run
from support.engines import EngineProcess, actor, config, engine
from support.layouts import OCI, Layout, layer_tar
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc", "docker-registry", "skopeo")]

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_registry(tmp_path_factory.mktemp("registries") / "plain") as served:
        yield served


@pytest.fixture(autouse=True)
def nothing_else(house: EngineProcess) -> Iterator[None]:
    yield
    for plugin in house.plugins():
        house.remove(plugin["Id"], force=True)


def digest_in(registry: Served, path: str, tag: str) -> str:
    """The digest of a manifest, as the registry tells it."""
    asked = urllib.request.Request(
        f"http://{registry.host}/v2/{path}/manifests/{tag}", headers={"Accept": f"{SCHEMA2}, {OCI}"}, method="HEAD"
    )
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return str(answer.headers["Docker-Content-Digest"])


def ok(cli: str, host: Path, *words: str) -> str:
    status, text = run(cli, host, list(words))
    assert status == 0, text
    return text


def moorage(house: EngineProcess, *words: str, **environment: str) -> Any:
    """Our own command; what it prints as JSON."""
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("cli", clis())
def test_d04_the_docker_command_pushes_by_us_what_dockerd_installs_and_pushes_again(
    cli: str, house: EngineProcess, dockerd: Dockerd, registry: Served, tmp_path: Path
) -> None:
    kind = Path(cli).parent.name  # of two commands, each has its own repository
    ours, back = f"{registry.host}/{kind}/ours:1", f"{registry.host}/{kind}/back:1"
    ok(cli, house.socket, "plugin", "create", ours, str(make_directory(tmp_path / f"by-{kind}", config())))
    text = ok(cli, house.socket, "plugin", "push", ours)
    assert text.splitlines()[0] == f"The push refers to repository [{registry.host}/{kind}/ours]"
    assert house.more(quote(ours, safe=""))["Digest"] == digest_in(registry, f"{kind}/ours", "1")
    ok(cli, dockerd.address, "plugin", "install", "--grant-all-permissions", "--alias", back, ours)
    try:
        assert dockerd.inspect_plugin(back)["Enabled"] is True
        ok(cli, dockerd.address, "plugin", "push", back)
    finally:
        dockerd.remove_plugin(back)
    assert digest_in(registry, f"{kind}/back", "1") == digest_in(registry, f"{kind}/ours", "1")


def test_d04_what_dockerd_pushed_we_install_and_push_again_byte_for_byte(
    house: EngineProcess, dockerd: Dockerd, registry: Served, tmp_path: Path
) -> None:
    cli, theirs, again = clis()[0], f"{registry.host}/d/theirs:1", f"{registry.host}/d/again:1"
    ok(cli, dockerd.address, "plugin", "create", theirs, str(make_directory(tmp_path / "theirs", config())))
    try:
        theirs_said = ok(cli, dockerd.address, "plugin", "push", theirs).splitlines()
    finally:
        dockerd.remove_plugin(theirs)
    ok(cli, house.socket, "plugin", "install", "--grant-all-permissions", "--alias", again, theirs)
    ours_said = ok(cli, house.socket, "plugin", "push", again).splitlines()
    assert digest_in(registry, "d/again", "1") == digest_in(registry, "d/theirs", "1")
    assert ours_said[0] == theirs_said[0].replace("theirs", "again")
    house.disable(quote(again, safe=""))


def test_d04_pushes_that_cannot_be_end_alike(house: EngineProcess, dockerd: Dockerd, tmp_path: Path) -> None:
    cli, name = clis()[0], "127.0.0.1:1/t/nowhere:1"
    for host in (dockerd.address, house.socket):
        ok(cli, host, "plugin", "create", name, str(make_directory(tmp_path / host.name, config())))
        assert run(cli, host, ["plugin", "push", "nope:1"])[0] == 1
        status, text = run(cli, host, ["plugin", "push", name])
        assert status == 1
        assert text.splitlines()[0] == "The push refers to repository [127.0.0.1:1/t/nowhere]"
        ok(cli, host, "plugin", "rm", name)


# skopeo


def skopeo(*words: str) -> None:
    tls = ["--src-tls-verify=false"] if words[0].startswith("docker:") else ["--dest-tls-verify=false"]
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "copy", *tls, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def upload(registry: Served, path: str, layout: Layout, target: dict[str, Any]) -> None:
    """Bring blobs and a manifest to a registry without any of our code."""
    base = f"http://{registry.host}/v2/{path}"
    for digest, data in layout.blobs.items():
        if digest != target["digest"]:
            begun = urllib.request.urlopen(urllib.request.Request(f"{base}/blobs/uploads/", method="POST"), timeout=20)
            send(f"{begun.headers['Location']}&digest={digest}", data, "application/octet-stream")
    send(f"{base}/manifests/1", layout.blobs[target["digest"]], target["mediaType"])


def send(url: str, data: bytes, media_type: str) -> None:
    asked = urllib.request.Request(url, data, {"Content-Type": media_type}, method="PUT")
    urllib.request.urlopen(asked, timeout=20).close()


def test_d09_an_archive_that_skopeo_made_loads_and_skopeo_copies_ours(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    layout = Layout()
    target = layout.plugin(config(), [layer_tar({"actor": (actor(), 0o755)}), layer_tar({"more": (b"x", 0o644)})])
    upload(registry, "t/plugin", layout, target)
    theirs, ours = tmp_path / "theirs.tar", tmp_path / "ours.tar"
    skopeo(f"docker://{registry.host}/t/plugin:1", f"oci-archive:{theirs}:t/plugin:1")
    moorage(house, "load", "-i", str(theirs))
    assert house.more("t/plugin:1")["Digest"] == target["digest"]
    house.enable("t/plugin:1")
    house.disable("t/plugin:1")
    moorage(house, "save", "-o", str(ours), "t/plugin:1")
    skopeo(f"oci-archive:{ours}", f"docker://{registry.host}/t/copied:1")
    assert digest_in(registry, "t/copied", "1") == target["digest"]


def test_d04_a_plugin_is_made_of_an_image_that_skopeo_wrote_into_a_directory(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    layout = Layout()
    target = layout.image([layer_tar({"actor": (actor(), 0o755)})])
    upload(registry, "t/image", layout, target)
    (tmp_path / "config.json").write_text(json.dumps(config()))
    skopeo(f"docker://{registry.host}/t/image:1", f"oci:{tmp_path / 'image'}:latest")
    skopeo(f"docker://{registry.host}/t/image:1", f"oci-archive:{tmp_path / 'image.tar'}")
    subprocess.run(["gzip", "-k", str(tmp_path / "image.tar")], check=True)
    digests = set()
    for number, image in enumerate(("image", "image.tar", "image.tar.gz", f"{registry.host}/t/image:1")):
        name = f"made/p{number}:1"
        source = image if image.startswith(registry.host) else str(tmp_path / image)
        words = ("create", name, "--from", source, "--config", str(tmp_path / "config.json"))
        assert json.loads(moorage(house, "--json", *words).splitlines()[-1])["Name"] == name
        digests.add(house.more(name)["Digest"])
    assert len(digests) == 1  # wherever it came from
    house.enable("made/p0:1")
    house.disable("made/p0:1")


def test_d05_our_command_pushes_with_the_credentials_that_docker_login_keeps(
    house: EngineProcess, dockerd: Dockerd, tmp_path: Path
) -> None:
    with serve_registry(tmp_path / "login", auth=htpasswd(tmp_path)) as registry:
        house.create("a:1")
        words = ["docker", "--config", str(tmp_path / "docker"), "login", "-u", USER, "--password-stdin", registry.host]
        environment = {**os.environ, "DOCKER_HOST": f"unix://{dockerd.address}"}  # a log-in is a daemon's work
        done = subprocess.run(words, input=PASSWORD, text=True, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        push = ("push", "a:1", f"{registry.host}/t/a:1")
        assert "digest: sha256:" in moorage(house, *push, DOCKER_CONFIG=str(tmp_path / "docker"))
        command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *push]
        environment = {**os.environ, "DOCKER_CONFIG": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 1
        assert registry.host in done.stderr
