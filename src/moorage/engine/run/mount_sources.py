"""Whether a container that was created in advance is what a start would create now. Everything here blocks."""

import os
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from moorage._lib.time_limit import call_bounded
from moorage.containerd.types import Spec
from moorage.host.proc import MountInfo, mounts
from moorage.runs.directories import PluginDirectories
from moorage.runs.plan import RunPlan
from moorage.timeouts import DEFAULT

__all__ = ("MountSource", "find_mount_sources", "started_spec")

_RESPONSE = DEFAULT.path_answer
"""Seconds until the file systems of all sources must have answered."""

_RECURSIVE = frozenset({"rbind", "rro"})


class MountSource(Struct, frozen=True):
    """What a container has got through a bind: it stays that, whatever its path leads to later."""

    path: str
    file: tuple[int, int] | None
    """Device and inode; None for a missing file."""
    below: tuple[tuple[str, str, str, str], ...] = ()
    """What is mounted below it, where that is bound, too: relative path, file system, its directory, its source."""


def find_mount_sources(plan: RunPlan) -> tuple[MountSource, ...]:
    """What a container that is created now would get from paths of this host that others can change.

    A device may be replaced, too; the spec of the container has its numbers.

    Raises: Unavailable where a file system does not answer.
    """
    made = (str(plan.socket_directory), str(plan.directories.propagated_view))
    binds = [each for each in plan.spec["mounts"] if _is_bind(each) and each["source"] not in made]

    if not binds:
        return ()

    def find() -> tuple[MountSource, ...]:
        present = mounts() if any(_RECURSIVE & set(each["options"]) for each in binds) else []
        return tuple(_find(each["source"], present if _RECURSIVE & set(each["options"]) else ()) for each in binds)

    return call_bounded(find, _RESPONSE, "check the mount sources", owner=plan.directories.id)


def started_spec(spec: Spec, directories: PluginDirectories) -> Spec:
    """The spec of a running container with the present path of its socket directory, which a standby had elsewhere."""
    before, now = str(directories.next_socket_directory), str(directories.socket_directory)
    moved = [{**each, "source": now} if each.get("source") == before else each for each in spec.get("mounts", ())]
    return {**spec, "mounts": moved} if moved else spec


def _is_bind(mount: Spec) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options", ())))


def _find(source: str, present: Sequence[MountInfo]) -> MountSource:
    try:
        status = os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return MountSource(source, None)
    below = os.path.realpath(source).rstrip("/") + "/"
    found = [each for each in present if each.point.startswith(below)]
    return MountSource(
        source,
        (status.st_dev, status.st_ino),
        tuple((str(Path(each.point).relative_to(below)), each.type, each.root, each.source) for each in found),
    )
