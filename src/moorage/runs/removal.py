"""Unmounts and removes what runs of plugins have on this host. Everything here blocks."""

from collections.abc import Collection
from pathlib import Path

from moorage import errors
from moorage.host.directory_tree import remove_tree_now
from moorage.host.mounts import unmount_all_below
from moorage.runs.directories import PluginDirectories

__all__ = ("delete_all", "remove_orphans", "remove_runtime")


def remove_runtime(directories: PluginDirectories) -> None:
    """Unmount everything of a plugin and remove its run-time directory. Its propagated files stay. May be repeated.

    Raises: Unavailable naming what stays.
    """
    runtime = [directories.runtime, directories.idmapped_view.parent]
    _unmount_and_remove(runtime, also_unmount=[directories.propagated_mount])


def delete_all(directories: PluginDirectories) -> None:
    """Remove the propagated files of a plugin too. May be repeated.

    Raises: Unavailable naming what stays.
    """
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


def _unmount_and_remove(directories: Collection[Path], also_unmount: Collection[Path] = ()) -> None:
    try:
        for directory in (*directories, *also_unmount):
            unmount_all_below(directory)
        for directory in directories:
            remove_tree_now(directory)
    except OSError as error:
        path = error.filename or next(iter(directories))
        raise errors.Unavailable(f"cannot remove {path}: {error.strerror}") from error
