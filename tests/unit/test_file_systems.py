"""What goes to the disk early, and that nothing waits for it."""

import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

from moorage.containerd.integrity import snapshot_directory
from moorage.containerd.types import Mount
from moorage.host import file_systems
from moorage.host.file_systems import WriteBack, sync_file_system
from support.limits import limit

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> "Synced":
    """Replaces the system call."""
    made = Synced(sync_file_system)
    monkeypatch.setattr(file_systems, "sync_file_system", made)
    return made


class Synced:
    """Reports each sync, which is a real one, and delays it as long as requested."""

    def __init__(self, sync: Callable[[str], None]) -> None:
        self.directories: list[str] = []
        self.results: list[OSError | None] = []
        self.failed = anyio.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self._sync = sync
        self._waiting: list[anyio.Event] = []

    def __call__(self, directory: str) -> None:
        self.directories.append(directory)
        anyio.from_thread.run_sync(self._report)
        self.may_end.wait(limit(10))
        try:
            self._sync(directory)
        except OSError as error:
            self.results.append(error)
            anyio.from_thread.run_sync(self.failed.set)
            raise
        self.results.append(None)

    def _report(self) -> None:
        for each in self._waiting:
            each.set()

    async def until(self, count: int) -> None:
        """Return when so many have begun."""
        while len(self.directories) < count:
            self._waiting.append(anyio.Event())
            with anyio.fail_after(limit(10)):
                await self._waiting[-1].wait()


async def test_it_is_synced_again_and_again_until_the_block_ends(synced: Synced, tmp_path: Path) -> None:
    async with WriteBack().of(str(tmp_path)):
        await synced.until(3)
    assert set(synced.directories) == {str(tmp_path)}
    assert set(synced.results[:2]) == {None}


async def test_the_end_of_the_block_waits_for_no_sync(synced: Synced, tmp_path: Path) -> None:
    synced.may_end.clear()
    try:
        with anyio.fail_after(limit(5)):
            async with WriteBack().of(str(tmp_path)):
                await synced.until(1)
        assert not synced.results
    finally:
        synced.may_end.set()


async def test_a_directory_that_cannot_be_read_is_not_read_again(synced: Synced, tmp_path: Path) -> None:
    async with WriteBack().of(str(tmp_path / "of another mount namespace")):
        with anyio.fail_after(limit(10)):
            await synced.failed.wait()
        await anyio.wait_all_tasks_blocked()
    assert len(synced.directories) == 1
    assert isinstance(synced.results[0], FileNotFoundError)


async def test_one_sync_at_a_time_also_where_an_earlier_block_has_left_one(synced: Synced, tmp_path: Path) -> None:
    synced.may_end.clear()
    made = WriteBack()
    try:
        async with made.of(str(tmp_path)):
            await synced.until(1)
        async with made.of(str(tmp_path)):
            await anyio.wait_all_tasks_blocked()
            assert len(synced.directories) == 1
            synced.may_end.set()
            await synced.until(2)
        assert synced.results[0] is None
    finally:
        synced.may_end.set()


async def test_what_the_block_raises_comes_out_as_itself(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with WriteBack().of(str(tmp_path)):
            raise KeyError("mine")


@pytest.mark.parametrize(
    ("mounts", "directory"),
    [
        (
            [Mount("overlay", "overlay", ("index=off", "workdir=/s/2/work", "upperdir=/s/2/fs", "lowerdir=/s/1/fs"))],
            "/s/2/fs",
        ),
        ([Mount("bind", "/s/1/fs", ("rw", "rbind"))], "/s/1/fs"),
        ([], ""),
    ],
)
def test_a_snapshot_is_written_to_where_its_mounts_say(mounts: list[Mount], directory: str) -> None:
    assert snapshot_directory(mounts) == directory
