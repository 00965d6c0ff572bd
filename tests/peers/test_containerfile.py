"""packaging/Containerfile, built and run by the real podman; its base and what pip installs are this machine's."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage import __version__
from support.consumers import ConsumerMachine, Podman, consumer_machine
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.extensive, pytest.mark.needs("podman")]

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "packaging/Containerfile"
BASE = "docker.io/library/python:3.13-slim"


@pytest.fixture
def machine() -> Iterator[ConsumerMachine]:
    with consumer_machine() as made:
        yield made


def base_image(python: str) -> bytes:
    """A root without programs, which has those of this machine by mounts, and pip."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                archive.addfile(link)
        script = f'#!/bin/sh\nexec {python} -m pip "$@"\n'.encode()
        file = tarfile.TarInfo("opt/bin/pip")
        file.size, file.mode = len(script), 0o755
        archive.addfile(file, io.BytesIO(script))
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
    return stream.getvalue()


def find_pip() -> str:
    """A Python that has pip: that of the tests, or the one that it was made from."""
    for python in (sys.executable, os.path.join(sys.base_prefix, "bin/python3")):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, timeout=limit(30)).returncode == 0:
            return python
    raise AssertionError("scripts/setup needs a pip, too")


def test_f07_the_image_of_the_rollouts_is_built_and_has_the_command(machine: ConsumerMachine, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=limit(60))
    (tmp_path / "base.tar").write_bytes(base_image(find_pip()))
    podman = Podman(machine)
    packages = Path(sys.prefix, f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")
    variables = {
        "PATH": "/app/bin:/opt/bin:/usr/bin",
        "PYTHONPATH": f"/app:{packages}",
        "PIP_TARGET": "/app",
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_FIND_LINKS": str(wheels),
    }
    changes = [f"--change=ENV {key}={value}" for key, value in variables.items()]
    podman("import", *changes, str(tmp_path / "base.tar"), BASE)
    mounts = [f"--volume={path}:{path}:ro" for path in ("/usr", sys.base_prefix, sys.prefix, str(wheels)) if path]
    podman("build", "--network=none", "--pull=never", *mounts, "-f", str(FILE), "-t", "moorage", str(FILE.parent))
    shown = podman("run", "--rm", "--network=none", *mounts, "moorage", "--version", within=limit(60))
    assert shown.strip().endswith(__version__)
    help = podman("run", "--rm", "--network=none", *mounts, "moorage", "apply", "--help", within=limit(60))
    assert "--watch" in help
