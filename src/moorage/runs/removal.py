"""Unmounts and removes what runs of plugins have on this host. Everything here blocks.

Where a consumer has mounted a volume, the mount point is not left a plain directory, to which a container would write
without notice: a placeholder is mounted there, empty and read-only, until the mount is made again or given back.
Source: row P11a.
"""

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage.host.cgroups import PARENT_GROUP, child_groups, groups_below, hierarchies, remove_groups
from moorage.host.directory_tree import open_beneath, remove_tree_now
from moorage.host.mount_points.placeholders import remove_placeholders
from moorage.host.mounts import (
    bind_shared,
    is_mount_point,
    mount_placeholder,
    mount_points_below,
    mount_state,
    resolved_by_parent,
    unmount_all_below,
)
from moorage.plugins import GROUP_PARENTS, container_of_group
from moorage.runs.directories import PluginDirectories

__all__ = (
    "MountPoint",
    "clear_propagated_mount",
    "cover_mount_points",
    "delete_all",
    "find_control_groups",
    "release_mount_points",
    "remove_orphans",
    "remove_runtime",
    "remove_unused_groups",
)

log = logging.getLogger(__name__)


class MountPoint(Struct, frozen=True):
    """Where a consumer's mount is on this host."""

    base: Path
    """A directory that the plugin shows; only what is below it is the plugin's to change."""
    below: str
    """The path of the mount point below it."""

    @property
    def path(self) -> Path:
        """The whole path."""
        return self.base / self.below


def cover_mount_points(points: Iterable[MountPoint]) -> list[Path]:
    """Mount a placeholder at each mount point where nothing live is mounted, also over a dead mount; those it made.

    A dead mount that is over a placeholder already is unmounted instead, else there were two more with each crash. A
    mount point that does not exist gets none: it cannot be written either. What fails is logged.
    """
    covered = []
    for point in points:
        try:
            remove_placeholders(point.path, base=point.base, retains_last=True)
            if mount_state(point.path) in ("none", "dead") and _cover(point):
                covered.append(point.path)
        except OSError as error:
            log.error("cannot protect %s, which consumers may write: %s", point.path, error.strerror)
    return covered


def _cover(point: MountPoint) -> bool:
    base = os.open(point.base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        directory = open_beneath(base, point.below, os.O_PATH | os.O_DIRECTORY, crosses_mounts=True)
    except (FileNotFoundError, NotADirectoryError):
        return False
    finally:
        os.close(base)
    try:
        mount_placeholder(directory)
    finally:
        os.close(directory)
    return True


def release_mount_points(points: Iterable[MountPoint]) -> None:
    """Remove placeholders and dead mounts at these mount points. What fails is logged."""
    for point in points:
        try:
            remove_placeholders(point.path, base=point.base)
        except OSError as error:
            log.error("cannot unmount %s: %s", point.path, error.strerror)


def remove_runtime(directories: PluginDirectories, mounted: Sequence[MountPoint] = ()) -> None:
    """Unmount everything of a plugin and remove its run-time directory. Its propagated files stay. May be repeated.

    Where consumers have ``mounted`` volumes, placeholders are mounted.

    Raises: Unavailable naming what stays.
    """
    _unmount_and_remove([directories.runtime, directories.idmapped_view.parent])
    clear_propagated_mount(directories, mounted)


def clear_propagated_mount(directories: PluginDirectories, mounted: Sequence[MountPoint] = ()) -> None:
    """Unmount everything of a plugin's propagated mount; placeholders are where consumers have ``mounted`` volumes.

    May be repeated: a placeholder stays then, without a gap. Under one, the directory stays a mount of its own, which
    the next run uses: a second one over it would hide the placeholders and what the plugin proxy unmounts.

    Raises: Unavailable naming what stays.
    """
    top = directories.propagated_mount
    try:
        if not any(point.base == top for point in mounted):
            unmount_all_below(top)
        else:
            points = [each for each in mount_points_below(top) if each != Path(resolved_by_parent(top))]
            if any(mount_state(each) != "placeholder" for each in points):
                for each in reversed(points):  # the uppermost first
                    unmount_all_below(each)
            if not is_mount_point(top) and top.is_dir():
                bind_shared(top)
    except OSError as error:
        raise errors.Unavailable(f"cannot unmount {error.filename or top}: {error.strerror}") from error
    cover_mount_points(mounted)


def delete_all(directories: PluginDirectories, mounted: Sequence[MountPoint] = ()) -> None:
    """Remove the propagated files of a plugin too, and placeholders where consumers have ``mounted`` volumes.

    May be repeated.

    Raises: Unavailable naming what stays.
    """
    release_mount_points(mounted)
    remove_runtime(directories)
    try:
        remove_tree_now(directories.propagated_mount)
    except OSError as error:
        path = error.filename or directories.propagated_mount
        raise errors.Unavailable(f"cannot remove {path}: {error.strerror}") from error


def remove_orphans(exec_root: Path, known: Collection[str]) -> None:
    """Remove the run-time directories of plugins whose short ids are not known.

    Raises: Unavailable naming what stays.
    """
    base = exec_root / "p"
    for directory in sorted(base.iterdir()) if base.is_dir() else ():
        if directory.name not in known:
            _unmount_and_remove([directory, exec_root / "u" / directory.name])


def find_control_groups(plugin_id: str) -> list[str]:
    """The paths of the control groups that runs of a plugin have on this host now.

    An earlier version of Moorage gave all runs of a plugin one group, which is named after the plugin.
    """
    mounted = hierarchies()
    found = [group for parent in GROUP_PARENTS for group in child_groups(parent, mounted)]
    return sorted(group for group in found if container_of_group(group).partition(".")[0] == plugin_id)


def remove_unused_groups(plugin_id: str) -> None:
    """Remove the control groups of runs of a plugin in which nothing runs. For a plugin without a container.

    A run has a group of its own, so that no later run removes one that could not be removed. systemd removes scopes.
    """
    for parent in groups_below(PARENT_GROUP):
        try:
            names = os.listdir(parent)
        except OSError:
            continue  # it does not exist in this hierarchy
        remove_groups([parent / name for name in names if name.partition(".")[0] == plugin_id])


def _unmount_and_remove(directories: Collection[Path]) -> None:
    try:
        for directory in directories:
            unmount_all_below(directory)
        for directory in directories:
            remove_tree_now(directory)
    except OSError as error:
        path = error.filename or next(iter(directories))
        raise errors.Unavailable(f"cannot remove {path}: {error.strerror}") from error
