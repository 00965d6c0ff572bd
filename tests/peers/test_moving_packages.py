"""Packages between Moorage, dockerd, the docker command, skopeo and a registry: nothing of them changes on the way."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from peers.dockerd import Dockerd
from peers.test_docker_cli import clis, make_directory, run
from support.engines import EngineProcess, actor, config
from support.layouts import OCI, Layout, layer_tar
from support.limits import limit
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry

pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("dockerd", "static-cc", "docker-registry", "skopeo"),
    pytest.mark.usefixtures("nothing_else"),
]

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"


def digest_in(registry: Served, path: str, tag: str) -> str:
    """The digest of a manifest, as the registry reports it."""
    manifest_request = urllib.request.Request(
        f"http://{registry.host}/v2/{path}/manifests/{tag}", headers={"Accept": f"{SCHEMA2}, {OCI}"}, method="HEAD"
    )
    with urllib.request.urlopen(manifest_request, timeout=limit(20)) as answer:
        return str(answer.headers["Docker-Content-Digest"])


def ok(cli: str, host: Path, *words: str) -> str:
    status, text = run(cli, host, list(words))
    assert status == 0, text
    return text


def moorage(house: EngineProcess, *words: str, **environment: str) -> Any:
    """Our own command; what it prints as JSON."""
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("cli", clis())
def test_d04_the_docker_command_pushes_by_us_what_dockerd_installs_and_pushes_again(
    cli: str, house: EngineProcess, dockerd: Dockerd, registry: Served, tmp_path: Path
) -> None:
    kind = Path(cli).parent.name  # of two commands, each has its own repository
    pushed, back = f"{registry.host}/{kind}/ours:1", f"{registry.host}/{kind}/back:1"
    ok(cli, house.socket, "plugin", "create", pushed, str(make_directory(tmp_path / f"by-{kind}", config())))
    text = ok(cli, house.socket, "plugin", "push", pushed)
    assert text.splitlines()[0] == f"The push refers to repository [{registry.host}/{kind}/ours]"
    assert house.more(quote(pushed, safe=""))["Digest"] == digest_in(registry, f"{kind}/ours", "1")
    ok(cli, dockerd.address, "plugin", "install", "--grant-all-permissions", "--alias", back, pushed)
    try:
        assert dockerd.inspect_plugin(back)["Enabled"] is True
        ok(cli, dockerd.address, "plugin", "push", back)
    finally:
        dockerd.remove_plugin(back)
    assert digest_in(registry, f"{kind}/back", "1") == digest_in(registry, f"{kind}/ours", "1")


def test_d04_what_dockerd_pushed_we_install_and_push_again_byte_for_byte(
    house: EngineProcess, dockerd: Dockerd, registry: Served, tmp_path: Path
) -> None:
    cli, docker_reference, again = clis()[0], f"{registry.host}/d/theirs:1", f"{registry.host}/d/again:1"
    ok(cli, dockerd.address, "plugin", "create", docker_reference, str(make_directory(tmp_path / "theirs", config())))
    try:
        docker_output = ok(cli, dockerd.address, "plugin", "push", docker_reference).splitlines()
    finally:
        dockerd.remove_plugin(docker_reference)
    ok(cli, house.socket, "plugin", "install", "--grant-all-permissions", "--alias", again, docker_reference)
    moorage_output = ok(cli, house.socket, "plugin", "push", again).splitlines()
    assert digest_in(registry, "d/again", "1") == digest_in(registry, "d/theirs", "1")
    assert moorage_output[0] == docker_output[0].replace("theirs", "again")
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
        ["skopeo", "--insecure-policy", "copy", *tls, *words], capture_output=True, text=True, timeout=limit(60)
    )
    assert done.returncode == 0, done.stderr


def upload(registry: Served, path: str, layout: Layout, target: dict[str, Any]) -> None:
    """Push blobs and a manifest to a registry without any of Moorage's code."""
    base = f"http://{registry.host}/v2/{path}"
    for digest, data in layout.blobs.items():
        if digest != target["digest"]:
            started_upload = urllib.request.urlopen(
                urllib.request.Request(f"{base}/blobs/uploads/", method="POST"), timeout=limit(20)
            )
            send(f"{started_upload.headers['Location']}&digest={digest}", data, "application/octet-stream")
    send(f"{base}/manifests/1", layout.blobs[target["digest"]], target["mediaType"])


def send(url: str, data: bytes, media_type: str) -> None:
    manifest_request = urllib.request.Request(url, data, {"Content-Type": media_type}, method="PUT")
    urllib.request.urlopen(manifest_request, timeout=limit(20)).close()


def test_d09_an_archive_of_skopeo_loads_and_skopeo_copies_a_saved_one(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    layout = Layout()
    target = layout.plugin(config(), [layer_tar({"actor": (actor(), 0o755)}), layer_tar({"more": (b"x", 0o644)})])
    upload(registry, "t/plugin", layout, target)
    docker_reference, pushed = tmp_path / "theirs.tar", tmp_path / "ours.tar"
    skopeo(f"docker://{registry.host}/t/plugin:1", f"oci-archive:{docker_reference}:t/plugin:1")
    moorage(house, "load", "-i", str(docker_reference))
    assert house.more("t/plugin:1")["Digest"] == target["digest"]
    house.enable("t/plugin:1")
    house.disable("t/plugin:1")
    moorage(house, "save", "-o", str(pushed), "t/plugin:1")
    skopeo(f"oci-archive:{pushed}", f"docker://{registry.host}/t/copied:1")
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
