"""Control groups of version 1, version 2 and both at once (hybrid): directories, processes, freezing and removal.

Nothing here asks a runtime or systemd. Everything here blocks, but for ``parent_group_in_use`` and
``remove_parent_group`` only on the kernel's memory. What a group uses is in ``host/cgroup_usage.py``.

Source: cgroups(7), and the kernel's documentation of both versions.
"""

import fcntl
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from msgspec import Struct

from moorage.host import proc
from moorage.host.directory_tree import read_below, remove_directories
from moorage.timeouts import DEFAULT

__all__ = (
    "CGROUP_ROOT",
    "PARENT_GROUP",
    "UNIFIED",
    "CgroupLayout",
    "CgroupSupport",
    "Hierarchies",
    "cgroup_layout",
    "child_groups",
    "find_groups",
    "groups_below",
    "hierarchies",
    "is_member",
    "parent_group_in_use",
    "pids_in",
    "pids_of",
    "remove_empty_group",
    "remove_groups",
    "remove_parent_group",
    "seems_empty",
    "thaw",
)

UNIFIED = ""
"""Name of version 2's hierarchy among the controllers of version 1."""

CGROUP_ROOT = Path("/sys/fs/cgroup")
"""Where the hierarchies are mounted: version 2 itself, those of version 1 below it."""

PARENT_GROUP = "moorage"
"""Name of the control group above those of all plugins, of every engine on this machine."""

_THAWED = (("freezer.state", "THAWED"), ("cgroup.freeze", "0"))
_NOT_CONTROLLERS = frozenset({"rw", "ro", "xattr", "noprefix", "clone_children"})
_POLL = 0.005  # seconds
_CREATION = DEFAULT.cgroup_creation  # seconds that a removal waits for the creation of a container by another engine

Hierarchies = Sequence[proc.MountInfo]
"""The mounts of control group file systems, in the order of mounting."""


class CgroupLayout(Enum):
    """Which versions of control groups a machine has."""

    V1 = "version 1"
    HYBRID = "hybrid"
    """Controllers of version 1, and a hierarchy of version 2 without controllers."""
    V2 = "version 2"


class CgroupSupport(Struct, frozen=True):
    """What a machine has mounted of control groups."""

    layout: CgroupLayout
    controllers: frozenset[str]


def cgroup_layout() -> CgroupSupport:
    """The version and the controllers of this machine, as they are mounted below /sys/fs/cgroup."""
    with suppress(OSError):
        return CgroupSupport(CgroupLayout.V2, frozenset((CGROUP_ROOT / "cgroup.controllers").read_text().split()))
    found = hierarchies()
    layout = CgroupLayout.HYBRID if any(each.type == "cgroup2" for each in found) else CgroupLayout.V1
    return CgroupSupport(layout, frozenset(name for each in found for name in _names(each)) - {UNIFIED})


def hierarchies() -> Hierarchies:
    """What is mounted of control groups here, for several calls of ``find_groups``."""
    return [each for each in proc.mounts() if each.type in ("cgroup", "cgroup2")]


def find_groups(path: str, mounted: Hierarchies | None = None) -> dict[str, Path]:
    """Controller to directory, for the control group of this path ("/moorage/<id>"); version 2 is ``UNIFIED``.

    Whether a directory exists is not checked where the whole hierarchy is mounted. Where only a part of it is, as in a
    container, runtimes join mount point and path all the same; for a path that is neither there nor in that part, none
    is returned, as for an empty path.
    """
    if not path:
        return {}
    found: dict[str, Path] = {}
    for each in hierarchies() if mounted is None else mounted:
        directory = Path(each.point + path)
        if each.root != "/" and not directory.is_dir():
            if not path.startswith(f"{each.root}/"):
                continue
            directory = Path(each.point + path.removeprefix(each.root))
        for name in _names(each):
            found.setdefault(name, directory)
    return found


def child_groups(path: str, mounted: Hierarchies | None = None) -> set[str]:
    """The paths of the groups directly below the group of this path, in any hierarchy."""
    found: set[str] = set()
    for directory in set(find_groups(path, mounted).values()):
        with suppress(OSError):  # it does not exist in this hierarchy
            found |= {f"{path}/{entry.name}" for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)}
    return found


def _names(mount: proc.MountInfo) -> Iterable[str]:
    """The controllers of a hierarchy; of one of version 1 without any, its name ("name=systemd")."""
    return (
        [UNIFIED] if mount.type == "cgroup2" else [each for each in mount.super_options if each not in _NOT_CONTROLLERS]
    )


def groups_below(name: str, root: Path = CGROUP_ROOT) -> Sequence[Path]:
    """The directories of a group below ``root``, which has hierarchies of either version; the first need not exist."""
    return root / name, *root.glob(f"*/{name}")


def is_member(pid: int, path: str) -> bool:
    """Whether a process is in the group of this path or below it, wherever the hierarchy is mounted."""
    return any(f"{path}/" in f"{each}/" for each in proc.cgroup_memberships(pid).values())


def pids_of(group: Path) -> list[int]:
    """The processes in a group, without those in groups below it; empty for one that is gone."""
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def pids_in(groups: Iterable[Path]) -> set[int]:
    """The processes in these groups and in all groups below them, of any depth."""
    return {int(pid) for group in set(groups) for text in read_below(group, "cgroup.procs") for pid in text.split()}


def thaw(group: Path) -> None:
    """Resume what is frozen in a group, so that signals reach it, SIGKILL included. One that is gone is fine."""
    for name, value in _THAWED:
        # a file of the other version does not exist, and is never created
        with suppress(OSError), open(group / name, "r+") as file:
            file.write(value)


def remove_groups(groups: Collection[Path]) -> None:
    """Remove groups with all groups below them, as far as nothing runs in them."""
    for group in groups:
        remove_directories(group)


def remove_empty_group(group: Path) -> bool:
    """Remove a group; whether it still exists though nothing is visible in it, so that trying again may help.

    The kernel considers a group in use for a moment after its last process.
    """
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return False
    except OSError:
        return seems_empty(group)
    return False


def seems_empty(group: Path) -> bool:
    """Whether a group exists in which nothing is visible, neither a process nor a group."""
    try:
        return not pids_of(group) and not any(entry.is_dir() for entry in group.iterdir())
    except OSError:
        return False


@contextmanager
def parent_group_in_use() -> Iterator[None]:
    """No other engine removes the control group above all plugins until the block ends.

    A runtime creates the group of a container in two steps, and fails where the upper one is removed between them.
    """
    lock = _open_lock()
    try:
        if lock is not None:
            fcntl.flock(lock, fcntl.LOCK_SH)  # others lock it exclusively only for as long as a removal takes
        yield
    finally:
        if lock is not None:
            os.close(lock)


def remove_parent_group() -> None:
    """Remove the control group above all plugins if it is empty, and no engine on this machine creates one in it."""
    lock = _open_lock()
    try:
        if lock is not None and not _lock_within(lock, _CREATION):
            return  # the engine that creates one removes it
        for group in set(find_groups(f"/{PARENT_GROUP}").values()):
            with suppress(OSError):  # it does not exist, or is in use
                os.rmdir(group)
    finally:
        if lock is not None:
            os.close(lock)


def _open_lock() -> int | None:
    """The directory of all control groups, which is the lock file, so that none is left behind."""
    try:
        return os.open(CGROUP_ROOT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None


def _lock_within(lock: int, within: float) -> bool:
    until = time.monotonic() + within
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_POLL)
        else:
            return True
