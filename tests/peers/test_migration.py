"""``moorage migrate`` of a managed plugin in the data directory of a real dockerd."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.dockerd import Dockerd, running_dockerd
from peers.test_docker_cli import clis, make_directory, run
from support.engines import EngineProcess, actor, config, engine
from support.foreground import wait_until
from support.limits import limit
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc")]

NAME = "old/volumes:latest"
CONFIG = config(
    propagatedMount="/mnt/data",
    env=[{"name": "DEBUG", "value": "0", "settable": ["value"]}, {"name": "FIXED", "value": "x"}],
    mounts=[{"name": "state", "source": "/srv", "destination": "/state", "type": "bind", "options": ["rbind"],
             "settable": ["source"]}],
)  # fmt: skip


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """A daemon with a plugin that has settings and data, and is enabled."""
    rootfs = tmp_path_factory.mktemp("package") / "rootfs"
    rootfs.mkdir()
    (rootfs / "actor").write_bytes(actor())
    (rootfs / "actor").chmod(0o755)
    with running_dockerd() as peer:
        peer.create_plugin("old/volumes", json.dumps(CONFIG).encode(), rootfs)
        peer.set_plugin("old/volumes", ["DEBUG=1 2", "state.source=/tmp"])
        peer.enable_plugin("old/volumes")
        (directory,) = (each for each in (peer.data / "plugins").iterdir() if len(each.name) == 64)
        data = directory / "propagated-mount/volumes"
        data.mkdir()
        (data / "file").write_text("content")
        os.chown(data / "file", 1234, 5678)
        (directory / "rootfs/written").write_text("by the plugin")
        yield peer


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path) as made:
        yield made
        for plugin in made.plugins():
            made.remove(plugin["Name"], force=True)


def migrate(house: EngineProcess, docker: Dockerd, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        "moorage",
        "--host",
        str(house.socket),
        "migrate",
        "--docker-root",
        str(docker.data),
    ]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=limit(60), check=False)


def test_p20_package_settings_and_data_of_a_managed_plugin_are_migrated(docker: Dockerd, house: EngineProcess) -> None:
    before = docker.inspect_plugin(NAME)
    if not before["Enabled"]:
        docker.enable_plugin(NAME)
    refused = migrate(house, docker, "old/volumes", "-y")
    assert refused.returncode == 1
    assert "it is enabled in a running Docker daemon; stop the containers that use it" in refused.stderr
    assert "run: docker plugin disable -f old/volumes:latest" in refused.stderr
    assert house.plugins() == []

    disable(docker)
    done = migrate(house, docker, "old/volumes", "-y")
    assert (done.returncode, done.stdout) == (0, f"{NAME}\n"), done.stderr
    assert f"left to do: docker plugin rm -f {NAME};" in done.stderr
    assert "not migrated: /written\n" in done.stderr
    made = house.inspect(NAME)
    assert made["Enabled"]
    assert made["Settings"] == before["Settings"]
    (manifest,) = _manifests(docker)
    assert made["Moorage"]["Digest"] == manifest
    assert made["Moorage"]["Published"]["Names"] == [NAME]
    copied = house.root / "plugins" / made["Id"] / "propagated-mount/volumes/file"
    assert copied.read_text() == "content"
    assert (copied.stat().st_uid, copied.stat().st_gid) == (1234, 5678)
    again = migrate(house, docker, "old/volumes", "-y")
    assert "a plugin of this name exists here already" in again.stderr
    assert docker.inspect_plugin(NAME)["Settings"] == before["Settings"]


def test_p20_what_is_not_granted_leaves_nothing(docker: Dockerd, house: EngineProcess) -> None:
    disable(docker)
    done = migrate(house, docker, "old/volumes")
    assert done.returncode == 1
    assert "give --grant-all-permissions" in done.stderr
    assert house.plugins() == []


def test_p20_a_plugin_can_be_migrated_without_being_enabled_or_published(docker: Dockerd, house: EngineProcess) -> None:
    disable(docker)
    done = migrate(house, docker, "-y", "--disable", "--no-publish", "--json", docker.inspect_plugin(NAME)["Id"][:12])
    made = json.loads(done.stdout)
    assert (made["Enabled"], made["Moorage"]["Published"]) == (False, None)


def test_p20_a_plugin_that_is_not_in_the_directory_is_reported_with_those_that_are(
    docker: Dockerd, house: EngineProcess, tmp_path: Path
) -> None:
    done = migrate(house, docker, "nope")
    assert f"known are: {NAME}" in done.stderr
    done = migrate(house, docker, "--docker-root", str(tmp_path), "nope")
    assert "it is no data directory of a Docker daemon" in done.stderr


@pytest.mark.needs("docker-registry")
def test_p20_a_plugin_whose_package_the_daemon_deleted_is_migrated_from_its_files(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    """A dockerd that removes a plugin deletes the manifests of all others, and the layers of those it has pulled."""
    cli, pushed = clis()[-1], f"{registry.host}/t/pulled:1"
    first, other = (str(make_directory(tmp_path / name, CONFIG)) for name in ("pulled", "other"))
    with running_dockerd() as docker:

        def plugin(*words: str) -> None:
            status, text = run(cli, docker.address, ["plugin", *words])
            assert status == 0, text

        plugin("create", pushed, first)
        plugin("push", pushed)
        plugin("rm", pushed)
        plugin("install", "--grant-all-permissions", "--alias=old/volumes", pushed)
        plugin("disable", "old/volumes")
        plugin("set", "old/volumes", "DEBUG=1")
        plugin("create", "other", other)
        plugin("rm", "other")
        blobs = docker.data / "plugins/storage/blobs/sha256"
        wait_until(lambda: len(list(blobs.iterdir())) == 1, "only the config is left")  # the daemon deletes beside it
        (directory,) = (docker.data / "plugins").glob("*/rootfs")
        (directory / "written").write_text("by the plugin")

        refused = migrate(house, docker, "old/volumes")
        assert "give --grant-all-permissions" in refused.stderr
        assert house.plugins() == []
        done = migrate(house, docker, "old/volumes", "-y")
        assert (done.returncode, done.stdout) == (0, f"{NAME}\n"), done.stderr
        assert "it is created from its files" in done.stderr
        assert f"moorage upgrade {NAME} {pushed}" in done.stderr
        assert "DEBUG=1" in house.call(NAME, "env").splitlines()
        root = house.exec_root / f"p/{house.inspect(NAME)['Id'][:12]}/root"
        assert (root / "written").read_text() == "by the plugin"

        (config_file,) = blobs.iterdir()
        config_file.unlink()
        house.remove(NAME, force=True)
        lost = migrate(house, docker, "old/volumes", "-y")
        assert f"cannot migrate plugin {NAME}: {config_file} is missing, and its config with it" in lost.stderr
        assert house.plugins() == []


def disable(docker: Dockerd) -> None:
    """Disable the plugin in the daemon, if it is enabled."""
    if docker.inspect_plugin(NAME)["Enabled"]:
        docker.disable_plugin(NAME)


def _manifests(docker: Dockerd) -> list[str]:
    return [json.loads(path.read_bytes())["Manifest"] for path in (docker.data / "plugins").glob("*/config.json")]
