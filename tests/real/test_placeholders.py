"""No consumer writes to the host's disk without notice: what is at a mount point while its plugin does not serve it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import cast

import pytest

from moorage.engine.plugin import PluginState
from moorage.engine.runner import Runner
from moorage.host.mount_points.placeholders import remove_placeholders
from moorage.host.mounts import bind_shared, drop_dead_mounts, mount_state, unmount_all_below
from moorage.plugins import parse_config
from moorage.runs.directories import PluginDirectories
from moorage.runs.plan import RunPlan
from moorage.runs.preparation import close_views, prepare_run
from moorage.runs.removal import MountPoint, cover_mount_points, delete_all, release_mount_points, remove_runtime
from support.leftovers import mounts_below
from support.reaper import remove_mounts_at_exit
from support.unresponsive_fuse import hanging_file_system, mount_dead_file_system

pytestmark = pytest.mark.real

CONFIG = b"""{"entrypoint": ["/p"], "interface": {"types": ["docker.volumedriver/1.0"], "socket": "p.sock"},
 "propagatedMount": "/mnt"}"""


@pytest.fixture
def base() -> Iterator[Path]:
    made = Path(mkdtemp(prefix="mt-", dir="/run"))
    remove_mounts_at_exit(made)
    try:
        yield made
    finally:
        unmount_all_below(made)
        assert mounts_below(made) == []
        shutil.rmtree(made)


def die(point: Path) -> None:
    """Mount a FUSE file system here whose server is gone."""
    point.mkdir(parents=True, exist_ok=True)
    mount_dead_file_system(point)


def propagation(path: Path) -> str:
    """Of the mount that a path is in."""
    command = ["findmnt", "--noheadings", "--output", "PROPAGATION", "--target", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def cannot_write(point: Path) -> bool:
    try:
        (point / "x").write_text("lost")
    except OSError:
        return True
    return False


def test_p11a_a_plain_directory_gets_a_placeholder_that_cannot_be_written(base: Path) -> None:
    (base / "v").mkdir()
    assert cover_mount_points([MountPoint(base, "v")]) == [base / "v"]
    assert (mount_state(base / "v"), os.listdir(base / "v")) == ("placeholder", [])
    assert cannot_write(base / "v")
    assert cover_mount_points([MountPoint(base, "v")]) == [], "one is enough"
    release_mount_points([MountPoint(base, "v")])
    assert mount_state(base / "v") == "none"
    (base / "v" / "x").write_text("it is the host's again")


def test_p11a_a_dead_mount_stays_below_its_placeholder(base: Path) -> None:
    die(base / "v")
    assert mount_state(base / "v") == "dead"
    cover_mount_points([MountPoint(base, "v")])
    assert mount_state(base / "v") == "placeholder"
    assert len(mounts_below(base)) == 2
    remove_placeholders(base / "v")
    assert mounts_below(base) == []


def test_p11a_the_mounts_of_one_volume_do_not_become_more_with_each_crash(base: Path) -> None:
    """After an hour of a soak there were 3,600, two for each crash and volume, and the engine could not stop."""
    for _ in range(5):
        die(base / "v")
        cover_mount_points([MountPoint(base, "v")])
        assert mount_state(base / "v") == "placeholder"
        assert len(mounts_below(base)) == 2
    release_mount_points([MountPoint(base, "v")])
    assert mounts_below(base) == []


def test_p11a_what_is_mounted_over_a_placeholder_is_live_and_stays(base: Path) -> None:
    (base / "v").mkdir()
    cover_mount_points([MountPoint(base, "v")])
    subprocess.run(["mount", "-t", "tmpfs", "live", base / "v"], check=True)
    assert mount_state(base / "v") == "live"
    assert cover_mount_points([MountPoint(base, "v")]) == []
    remove_placeholders(base / "v")
    assert len(mounts_below(base)) == 2, "only what is uppermost is removed, and that is live"
    subprocess.run(["umount", base / "v"], check=True)
    assert cannot_write(base / "v"), "the placeholder is there again"


def test_p11a_a_mount_point_that_does_not_exist_is_not_made(base: Path) -> None:
    (base / "file").write_text("")
    points = [MountPoint(base, "missing"), MountPoint(base, "file"), MountPoint(base / "none", "v")]
    assert cover_mount_points(points) == []
    assert not (base / "missing").exists()


def test_p11a_a_symbolic_link_of_the_plugin_leads_nowhere(base: Path) -> None:
    for each in ("shown", "host/secret"):
        (base / each).mkdir(parents=True)
    (base / "shown/v").symlink_to(base / "host")
    cover_mount_points([MountPoint(base / "shown", "v"), MountPoint(base / "shown", "v/secret")])
    assert mounts_below(base) == []


def test_p11a_a_file_system_that_does_not_answer_is_left_alone(base: Path) -> None:
    (base / "v").mkdir()
    with hanging_file_system(base / "v"):
        assert mount_state(base / "v") == "hung"
        assert cover_mount_points([MountPoint(base, "v")]) == []
        remove_placeholders(base / "v")
        assert len(mounts_below(base)) == 1


def test_p11a_dead_mounts_of_no_consumer_are_removed_as_ever(base: Path) -> None:
    die(base / "used")
    die(base / "unused")
    dropped, hung = drop_dead_mounts(base, [base / "used"])
    assert (dropped, hung) == ([base / "unused"], [])
    assert mount_state(base / "used") == "dead"


# a run


def plan(base: Path) -> RunPlan:
    directories = PluginDirectories("ab" * 32, base / "run", base / "data/propagated-mount")
    for each in (directories.runtime, directories.propagated_mount.parent):
        each.mkdir(parents=True)
    config = parse_config(CONFIG).config
    return RunPlan(config, directories, directories.socket(config), {})


def mount_root(made: RunPlan) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "root", made.directories.root], check=True)
    (made.directories.root / "dev").mkdir()


def test_p11a_the_mount_point_is_never_a_plain_directory_from_a_crash_to_the_replay(base: Path) -> None:
    made = plan(base)
    volume, point = made.directories.propagated_mount / "v", MountPoint(made.directories.propagated_mount, "v")
    prepare_run(made, mount_root)
    close_views(made.directories)
    die(volume)  # the plugin has mounted it and was killed
    die(made.directories.propagated_mount / "other")
    preparation = prepare_run(made, mount_root, [point])
    assert preparation.unmounted == (made.directories.propagated_mount / "other",)
    assert cannot_write(volume)
    assert cannot_write(made.directories.propagated_view / "v"), "the plugin sees it, too, and mounts over it"
    close_views(made.directories)
    assert mount_state(volume) == "placeholder"
    remove_runtime(made.directories)


def test_p11a_while_it_is_not_known_what_is_mounted_every_dead_mount_is_protected(base: Path) -> None:
    made = plan(base)
    prepare_run(made, mount_root)
    close_views(made.directories)
    die(made.directories.propagated_mount / "v")
    assert prepare_run(made, mount_root, None).unmounted == ()
    assert mount_state(made.directories.propagated_mount / "v") == "placeholder"
    close_views(made.directories)
    remove_runtime(made.directories)


def test_p11a_a_forced_disable_leaves_placeholders_and_an_enable_takes_them_along(base: Path) -> None:
    made = plan(base)
    volume, point = made.directories.propagated_mount / "v", MountPoint(made.directories.propagated_mount, "v")
    prepare_run(made, mount_root)
    close_views(made.directories)
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "live", volume], check=True)
    remove_runtime(made.directories, [point])
    # Where /run is a shared mount, what is mounted below the propagated mount is also mounted beneath that.
    copies = 2 if propagation(base) == "shared" else 1
    mounted = [str(made.directories.propagated_mount), *[str(volume)] * copies]
    assert sorted(mounts_below(base)) == mounted
    assert mount_state(volume) == "placeholder"
    remove_runtime(made.directories, [point])  # the next engine finds it disabled
    assert sorted(mounts_below(base)) == mounted
    prepare_run(made, mount_root, [point])
    assert cannot_write(volume)
    close_views(made.directories)
    release_mount_points([point])
    assert mount_state(volume) == "none"
    remove_runtime(made.directories)
    assert mounts_below(base) == []


def test_p11a_a_removal_removes_placeholders_and_the_files(base: Path) -> None:
    made = plan(base)
    point = MountPoint(made.directories.propagated_mount, "v")
    prepare_run(made, mount_root)
    close_views(made.directories)
    (made.directories.propagated_mount / "v").mkdir()
    remove_runtime(made.directories, [point])
    delete_all(made.directories, [point])
    assert not made.directories.propagated_mount.exists()


def test_p11a_a_volume_of_a_bind_mount_is_protected_on_the_host(base: Path) -> None:
    made = plan(base)
    (base / "srv/v").mkdir(parents=True)
    bind_shared(base / "srv")
    prepare_run(made, mount_root, [MountPoint(base / "srv", "v")])
    assert cannot_write(base / "srv/v")
    close_views(made.directories)
    remove_runtime(made.directories, [MountPoint(base / "srv", "v")])
    assert cannot_write(base / "srv/v")
    release_mount_points([MountPoint(base / "srv", "v")])
    assert mount_state(base / "srv/v") == "none"


class Returning:
    """What a runner reads of a plugin: what consumers have mounted, each time that it is requested."""

    def __init__(self, *mounted: tuple[MountPoint, ...]) -> None:
        self._mounted = list(mounted)

    def mount_points(self) -> tuple[MountPoint, ...]:
        return self._mounted.pop(0) if len(self._mounted) > 1 else self._mounted[0]


@pytest.mark.anyio
async def test_p11a_a_mount_that_is_returned_while_it_is_covered_leaves_no_placeholder(base: Path) -> None:
    (base / "v").mkdir()
    point = MountPoint(base, "v")
    runner = Runner(cast(PluginState, Returning((point,), ())))
    await runner.remove_files(keep_mounted=True)
    assert mount_state(point.path) == "none"


@pytest.mark.anyio
async def test_p11a_a_placeholder_stays_until_it_is_known_that_the_mount_was_returned(base: Path) -> None:
    (base / "v").mkdir()
    point = MountPoint(base, "v")
    runner = Runner(cast(PluginState, Returning((point,), (point,), (point,), ())))
    await runner.remove_files(keep_mounted=True)
    assert mount_state(point.path) == "placeholder"
    await runner.release_returned()
    assert mount_state(point.path) == "placeholder"
    assert runner.has_returned
    await runner.release_returned()
    assert mount_state(point.path) == "none"
