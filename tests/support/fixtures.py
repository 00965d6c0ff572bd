"""Fixtures for tests on a real containerd, to be imported into the conftest of the folders that use them."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import anyio
import pytest

from moorage.containerd.supervisor import PrivateContainerd
from support import leftovers, specs
from support.places import CGROUP_PARENT, Ground, Place

CONTAINERD_LOG = pytest.StashKey[tuple[Path, int]]()


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """A containerd of this session's own, and a root file system for its containers."""
    directory = Path(tempfile.mkdtemp(prefix=f"moorage-test-{os.getpid()}-"))
    directory.chmod(0o711)  # users of a user namespace must get through to the root file system
    containerd = PrivateContainerd(directory / "root", directory / "state")
    anyio.run(containerd.ensure)
    try:
        yield Ground(directory, specs.make_rootfs(directory / "rootfs"), containerd)
    finally:
        anyio.run(containerd.stop)
        leftovers.remove_cgroups(CGROUP_PARENT)
        assert not leftovers.mounts_below(directory)
        shutil.rmtree(directory)


@pytest.fixture
def place(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A namespace of the session's containerd; whatever a test leaves in it is its failure."""
    log = ground.containerd.root / "containerd.log"
    request.node.stash[CONTAINERD_LOG] = log, log.stat().st_size
    place = Place(ground)
    yield place
    anyio.run(place.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what containerd said during a test that failed."""
    report = yield
    path, begin = item.stash.get(CONTAINERD_LOG, (None, 0))
    if report.failed and path and path.exists():  # the session's own end removes it
        with open(path, "rb") as log:
            log.seek(begin)
            report.sections.append(("containerd's log", log.read().decode(errors="replace")[-20000:]))
    return report
