"""The first example of README.md and the guides about plugins in use, as a reader walks through them:
volumes-for-programs.md, volumes-with-podman.md and plugins-for-dockerd.md, with real podman and dockerd.
"""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peers.consumers import Consumers
from support.consumers import IMAGE, Docker, Podman
from support.engines import EngineProcess
from support.pages import Reader

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("dockerd", "podman", "docker", "busybox")]

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs/guide"


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


def test_v01_v02_any_program_uses_a_volume_as_the_guide_says(consumers: Consumers) -> None:
    with reader_on(consumers, "programs") as (reader, house):
        reader.walk((GUIDES / "volumes-for-programs.md").read_text())
        assert house.plugins() == []


def test_p01_p15_podman_uses_a_volume_as_the_guide_says(consumers: Consumers) -> None:
    podman: Podman = consumers.podman
    podman("tag", IMAGE, "docker.io/library/busybox")
    with reader_on(consumers, "podman-guide") as (reader, house):
        add_command(reader, "podman", podman.command())
        reader.walk((GUIDES / "volumes-with-podman.md").read_text())
        assert house.plugins() == []
    assert not (consumers.machine.configuration / "containers.conf.d/50-moorage.conf").exists()


def test_p01_dockerd_uses_a_volume_as_the_guide_says(consumers: Consumers) -> None:
    docker: Docker = consumers.docker
    docker("tag", IMAGE, "busybox")
    with reader_on(consumers, "docker-guide") as (reader, house):
        add_command(reader, "docker", docker.machine.command("docker", f"--host=unix://{docker.address}"))
        reader.walk((GUIDES / "plugins-for-dockerd.md").read_text())
        assert house.plugins() == []


def test_p01_podman_uses_a_volume_driver_as_the_readme_says(consumers: Consumers) -> None:
    podman: Podman = consumers.podman
    podman("tag", IMAGE, "docker.io/library/busybox")
    with reader_on(consumers, "readme") as (reader, house):
        add_command(reader, "podman", podman.command())
        assert len(reader.walk((ROOT / "README.md").read_text())) == 5
        (note,) = (house.root / "plugins").glob("*/propagated-mount/store/data/note")
        assert note.read_text() == "written in a container\n"
        podman("volume", "rm", "data")
        house.remove("hello", force=True)
