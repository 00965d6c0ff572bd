"""Fixtures for tests on a real containerd, to be imported into the conftest of the folders that use them."""

import os
import resource
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import anyio
import pytest
from blockbuster import blockbuster_ctx

from moorage.containerd.supervisor import PrivateContainerd
from support import leftovers, specs
from support.workspace import CGROUP_PARENT, Session, Workspace

CONTAINERD_LOG = pytest.StashKey[tuple[Path, int]]()


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    """A containerd of this session's own, and a root file system for its containers."""
    directory = Path(tempfile.mkdtemp(prefix=f"moorage-test-{os.getpid()}-"))
    directory.chmod(0o711)  # users of a user namespace must get through to the root file system
    containerd = PrivateContainerd(directory / "root", directory / "state")
    anyio.run(containerd.ensure)
    try:
        yield Session(directory, specs.make_rootfs(directory / "rootfs"), containerd)
    finally:
        anyio.run(containerd.stop)
        leftovers.remove_cgroups(CGROUP_PARENT)
        assert not leftovers.mounts_below(directory)
        shutil.rmtree(directory)


@pytest.fixture
def workspace(session: Session, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """A namespace of the session's containerd; whatever a test leaves in it is its failure."""
    log = session.containerd.root / "containerd.log"
    request.node.stash[CONTAINERD_LOG] = log, log.stat().st_size
    workspace = Workspace(session)
    yield workspace
    anyio.run(workspace.close)


@pytest.fixture
def unblocked() -> Iterator[None]:
    """Fails a test in which Moorage's code stops the loop by a blocking call."""
    with blockbuster_ctx("moorage"):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what containerd said during a test that failed."""
    report = yield
    path, begin = item.stash.get(CONTAINERD_LOG, (None, 0))
    if report.failed and path and path.exists():  # the session removes it at last
        with open(path, "rb") as log:
            log.seek(begin)
            report.sections.append(("containerd's log", log.read().decode(errors="replace")[-20000:]))
    return report


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many for this process as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
