"""The first example of README.md and the guides about plugins in use, as a reader walks through them:
volumes-for-programs.md, volumes-with-podman.md, plugins-for-dockerd.md and migrate-from-docker.md, with real podman,
dockerd, containerd and mount(8).
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import moorage
from moorage.host.mounts import is_mount_point
from peers.consumers import Consumers
from support.consumers import IMAGE, Docker, Podman
from support.engines import EngineProcess
from support.mount_helpers import HELPERS, helpers_alone
from support.pages import Reader, commands

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("dockerd", "podman", "docker", "busybox")]

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs/guide"
BUSYBOX = "docker.io/library/busybox:latest"
PULL = f"ctr images pull {BUSYBOX}"
INSTALL = "moorage install -y --publish --alias old/sshfs vieux/sshfs:latest DEBUG=1"
"""Walked by test_docker_cli.py, with a registry."""


@contextmanager
def reader_on(consumers: Consumers, name: str) -> Iterator[tuple[Reader, EngineProcess]]:
    """A reader in a checkout, on the machine of the consumers, with an engine that publishes there."""
    base = consumers.machine.directory / name
    base.mkdir()
    house = EngineProcess(
        base,
        publish_directory=str(consumers.machine.sockets),
        podman_config=str(consumers.machine.configuration / "containers.conf.d/50-moorage.conf"),
    )
    try:
        house.start()
        roots = {"/run/moorage": house.exec_root, "/var/lib/moorage": house.root}
        reader = Reader(base / "reader", roots, {"MOORAGE_HOST": str(house.socket)})
        (reader.home / "examples").symlink_to(ROOT / "examples")
        yield reader, house
    finally:
        house.close()


def add_command(reader: Reader, name: str, words: list[str]) -> None:
    """Let the reader have a command of this name, which is among the words."""
    program = reader.home / "bin" / name
    installed = shutil.which(name)  # by its path, else the reader's command would find itself
    assert installed is not None
    words = [installed if word == name else word for word in words]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o755)


@pytest.mark.needs("ctr")
def test_v01_v02_v03_any_program_uses_a_volume_as_the_guide_says(consumers: Consumers) -> None:
    text = (GUIDES / "volumes-for-programs.md").read_text()
    (line,) = re.findall(r"^```\n(.* moorage .*)\n```$", text, re.MULTILINE)
    with reader_on(consumers, "programs") as (reader, house), helpers_alone():
        point, fstab = reader.home / "mnt-data", reader.home / "fstab"
        fstab.write_text(line.replace("/mnt/data", str(point)) + "\n")
        reader.environment["LIBMOUNT_FSTAB"] = str(fstab)  # Source: libmount, mnt_get_fstab_path
        own: dict[str, Path | str] = {"/mnt/data": point, "/path/to/venv/bin": reader.home / "bin"}
        reader.paths = {**reader.paths, **own, "/sbin/": f"{HELPERS}/"}
        for name in ("mount", "umount"):
            add_helper(reader, name)
        archive = reader.home / "busybox.oci"
        consumers.podman("tag", IMAGE, BUSYBOX)
        consumers.podman("save", "--format=oci-archive", f"--output={archive}", BUSYBOX)
        add_command(reader, "ctr", ["ctr", f"--address={house.exec_root}/containerd/c.sock"])
        reader.type(f"ctr images import --base-name docker.io/library/busybox {archive}")
        try:
            done = reader.walk(text, leave_out=(PULL,))
        finally:
            for name in ("mount", "umount"):
                (HELPERS / f"{name}.moorage").unlink(missing_ok=True)
        assert PULL in commands(text)
        assert sum(each.startswith("ctr run") for each in done) == 1
        assert not is_mount_point(point)
        assert house.plugins() == []


def add_helper(reader: Reader, name: str) -> None:
    """A helper of mount(8) where pip would have installed it."""
    program = reader.home / f"bin/{name}.moorage"
    call = f"from moorage.cli.volumes.mount_helper import {name} as run; run()"
    source = Path(moorage.__file__).parents[1]
    program.write_text(f"#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -c '{call}' \"$@\"\n")
    program.chmod(0o755)


def test_p01_p15_podman_uses_a_volume_as_the_guide_says(consumers: Consumers) -> None:
    podman: Podman = consumers.podman
    podman("tag", IMAGE, "docker.io/library/busybox")
    with reader_on(consumers, "podman-guide") as (reader, house):
        add_command(reader, "podman", podman.command())
        reader.walk((GUIDES / "volumes-with-podman.md").read_text())
        assert house.plugins() == []
    assert not (consumers.machine.configuration / "containers.conf.d/50-moorage.conf").exists()


def add_docker(reader: Reader, docker: Docker) -> None:
    """The docker command, which without -H talks to this daemon, as on a machine where it has its usual path."""
    add_command(reader, "docker", docker.machine.command("docker"))
    reader.environment["DOCKER_HOST"] = f"unix://{docker.address}"


def test_p01_p03_dockerd_uses_a_volume_as_the_guide_says_and_again_when_it_is_repeated(consumers: Consumers) -> None:
    docker: Docker = consumers.docker
    docker("tag", IMAGE, "busybox")
    with reader_on(consumers, "docker-guide") as (reader, house):
        add_docker(reader, docker)
        for _ in range(2):  # the daemon keeps its connections; the second time the plugin is another one
            reader.walk((GUIDES / "plugins-for-dockerd.md").read_text())
            assert house.plugins() == []


def test_p20_a_volume_of_a_migrated_plugin_is_used_as_before(consumers: Consumers) -> None:
    docker: Docker = consumers.docker
    docker("plugin", "create", "old/volumes", str(ROOT / "examples/hello-volume"))
    docker("plugin", "enable", "old/volumes")
    docker("volume", "create", "--driver=old/volumes", "old")
    docker.run("--volume=old:/data", script="echo by the managed plugin > /data/file")
    guide = re.sub(r"^   ", "", (GUIDES / "migrate-from-docker.md").read_text(), flags=re.MULTILINE)
    with reader_on(consumers, "migrate-guide") as (reader, house):
        add_docker(reader, docker)
        reader.walk(guide, leave_out=(INSTALL,))
        assert INSTALL in commands(guide)
        assert docker.run("--volume=old:/data", script="cat /data/file") == "by the managed plugin\n"
        docker("volume", "rm", "old")
        house.remove("old/volumes", force=True)


def test_p01_podman_uses_a_volume_driver_as_the_readme_says(consumers: Consumers) -> None:
    podman: Podman = consumers.podman
    podman("tag", IMAGE, "docker.io/library/busybox")
    with reader_on(consumers, "readme") as (reader, house):
        add_command(reader, "podman", podman.command())
        assert len(reader.walk((ROOT / "README.md").read_text())) == 8
        assert house.plugins() == []
