"""What the proxy checks and unmounts on the host, in threads: file systems of plugins may hang (rows P07, P11a)."""

import os
from pathlib import Path

from moorage import errors
from moorage._lib.time_limit import call_bounded
from moorage.host import proc
from moorage.host.directory_tree import open_beneath
from moorage.host.mounts import mount_state, remove_placeholders
from moorage.proxy.core.actions import Verify

__all__ = ("release", "verify")

_LIMIT = 5.0  # seconds


def verify(request: Verify, owner: str) -> tuple[str, str]:
    """Whether a path inside a plugin and the host's are one directory (blocking, bounded).

    The problem, empty if they are; and the mount point of the file system there, empty for a plain directory. ``owner``
    is the plugin's id.
    """
    try:
        found = call_bounded(lambda: _differ(request), _LIMIT, f"compare {request.outside}", owner=owner)
    except errors.Unavailable as error:
        return str(error), ""
    except OSError as error:
        found = f"cannot open {error.filename or request.outside}: {error.strerror}"
    if found:
        return (
            f"the plugin mounted at {request.inside}, which is not {request.outside} of the host ({found}): "
            "its mount is not propagated, so its config needs a propagatedMount above that path"
        ), ""
    point = _mount_point(request.outside, request.below)
    if request.needs_mount and not point:
        return f"the plugin answered, but mounted nothing at {request.outside}", ""
    if point and mount_state(Path(point)) == "placeholder":
        return f"the plugin answered, but mounted nothing over the placeholder at {point}", ""
    return "", point


def _differ(request: Verify) -> str:
    """How both paths differ; no link is followed, so that neither leads elsewhere. Raises: OSError."""
    inside = _identity(proc.root_path(request.pid), request.inside)
    outside = _identity(request.below, os.path.relpath(request.outside, request.below))
    return "" if inside == outside else f"device and inode {inside} inside, {outside} outside"


def _identity(top: str, path: str) -> tuple[int, int]:
    directory = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = open_beneath(directory, path.strip("/") or ".", os.O_PATH | os.O_DIRECTORY, crosses_mounts=True)
    finally:
        os.close(directory)
    try:
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino
    finally:
        os.close(descriptor)


def _mount_point(path: str, below: str) -> str:
    """The mount point that has a path, if it is below a directory; empty otherwise."""
    top = os.path.realpath(below).rstrip("/")
    full = f"{top}/{os.path.relpath(path, below)}"
    best = ""
    for point in proc.mount_points():
        if point.startswith(f"{top}/") and (full == point or full.startswith(f"{point}/")):
            best = max(best, point, key=len)
    return best


def release(paths: tuple[str, ...]) -> str:
    """Unmount placeholders and dead mounts at these paths (blocking, bounded). What failed, empty if nothing did."""
    problems = []
    for path in paths:
        try:
            remove_placeholders(Path(path))
        except (OSError, errors.MoorageError) as error:
            problems.append(f"{path}: {error}")
    return "; ".join(problems)
