"""Directories of the data directory that no record names: removed where no user's files can be in them, else set aside.

Everything here blocks.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from moorage._lib.atomic_file import sync_directory
from moorage._lib.threads import mount_points_below
from moorage.engine.mounts import unmount_all_below
from moorage.host.beneath import remove_tree_now

__all__ = ("ASIDE", "find_removals", "is_plugin_id", "list_set_aside", "sweep_directories", "sweep_temporary")

log = logging.getLogger(__name__)

ASIDE = "set-aside"
"""Directory below the data directory: what belonged to no plugin and may hold files of a user."""

_ID = re.compile(r"[0-9a-f]{64}")
_REMOVAL = re.compile(r"(?P<id>[0-9a-f]{64})-removing")
_PROPAGATED = "propagated-mount"
_HALF_MADE = frozenset({".plugin.json.new"})


def is_plugin_id(name: str) -> bool:
    """Whether a directory of this name is a plugin's."""
    return _ID.fullmatch(name) is not None


def find_removals(plugins: Path) -> Iterator[tuple[Path, str]]:
    """Directories ``<id>-removing``, each with the id: the removal of that plugin was begun."""
    for path in sorted(plugins.iterdir()):
        if (match := _REMOVAL.fullmatch(path.name)) is not None:
            yield path, match["id"]


def sweep_directories(plugins: Path, aside: Path, is_known: Callable[[str], bool]) -> None:
    """Remove the directories of plugins that were never finished, and finish removals that have no record any more.

    A directory that has other files than we make, or files in its propagated mount, is moved to ``aside``, and so is
    whatever has another name than a plugin's id; both are logged. Raises: OSError for what stays.
    """
    for path in sorted(plugins.iterdir()):
        removal = _REMOVAL.fullmatch(path.name)
        if is_known(path.name) or (removal is not None and (path / "plugin.json").exists()):
            continue
        if removal is not None:
            log.warning("finishing the removal of %s", path)
            _remove(path)
        elif is_plugin_id(path.name) and not _may_hold_user_data(path):
            log.warning("removing %s, which belongs to no plugin", path)
            _remove(path)
        else:
            _set_aside(path, aside)


def sweep_temporary(temporary: Path) -> None:
    """Remove what lies in the temporary directory. Raises: OSError for what stays."""
    for path in temporary.iterdir():
        log.warning("removing %s, which belongs to no plugin", path)
        _remove(path)


def list_set_aside(root: Path) -> list[str]:
    """What was set aside below this data directory, as text."""
    try:
        found = sorted(os.listdir(root / ASIDE))
    except OSError:
        return []
    paths = (root / ASIDE / name for name in found)
    return [f"{path} belonged to no plugin and was set aside, because it may hold data" for path in paths]


def _may_hold_user_data(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return True
    unmount_all_below(path)
    for entry in path.iterdir():
        if entry.name == _PROPAGATED and not entry.is_symlink() and entry.is_dir():
            if any(entry.iterdir()):
                return True
        elif entry.name not in _HALF_MADE:
            return True
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        unmount_all_below(path)
        remove_tree_now(path)
    else:
        path.unlink()


def _set_aside(path: Path, aside: Path) -> None:
    if path.is_dir() and not path.is_symlink() and mount_points_below(path):
        unmount_all_below(path)
    aside.mkdir(mode=0o700, exist_ok=True)
    target, number = aside / path.name, 0
    while os.path.lexists(target):
        number += 1
        target = aside / f"{path.name}.{number}"
    log.warning("moving %s to %s: it belongs to no plugin and may hold data", path, target)
    os.rename(path, target)
    for directory in (aside, path.parent):
        sync_directory(directory)
