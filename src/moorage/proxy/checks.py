"""What the proxy checks and unmounts on the host, in threads: file systems of plugins may hang (rows P07, P11a)."""

import os
import time
from pathlib import Path

from moorage import errors
from moorage.host import proc
from moorage.host.directory_tree import open_beneath
from moorage.host.mounts import MountState, is_placeholder, mount_state, remove_placeholders
from moorage.proxy.core.actions import EXITED, Verify

__all__ = ("release", "verify")

_UNMOUNT_LIMIT, _UNMOUNT_POLL = 1.0, 0.05  # seconds
_EXIT_LIMIT, _EXIT_POLL = 0.3, 0.01
"""Seconds in which the process of a plugin exits whose files are closed: its mounts are dead a moment before."""


def verify(request: Verify) -> tuple[str, str]:
    """Whether a path inside a plugin and the host's are one directory (blocking, maybe for ever).

    The problem, empty if they are, ``EXITED`` if the plugin has exited meanwhile; and the mount point of the file
    system there, empty for a plain directory.
    """
    problem, mount_point = _compare(request)
    until = time.monotonic() + _EXIT_LIMIT
    while problem and not (has_exited := proc.has_exited(request.pid)) and time.monotonic() < until:
        time.sleep(_EXIT_POLL)
    return (EXITED, "") if problem and has_exited else (problem, mount_point)


def _compare(request: Verify) -> tuple[str, str]:
    try:
        inside = _open(proc.root_path(request.pid), request.inside)
        try:
            outside, is_mounted = _open_on_host(request)
            try:
                found = _difference(inside, outside)
            finally:
                os.close(outside)
        finally:
            os.close(inside)
    except OSError as error:
        found, is_mounted = f"cannot open {error.filename or request.outside}: {error.strerror}", False
    if found:
        return (
            f"the plugin mounted at {request.inside}, which is not {request.outside} of the host ({found}): "
            "its mount is not propagated, so its config needs a propagatedMount above that path"
        ), ""
    point = _mount_at(request.outside, request.below) if is_mounted else None
    if point is not None and is_placeholder(point):
        return f"the plugin answered, but mounted nothing over the placeholder at {point.point}", ""
    if point is None and request.needs_mount:
        return f"the plugin answered, but mounted nothing at {request.outside}", ""
    return "", point.point if point is not None else ""


def _open(top: str, path: str) -> int:
    """A directory beneath another one; no link is followed, so that it leads nowhere else. Raises: OSError."""
    directory = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_beneath(directory, path.strip("/") or ".", os.O_PATH | os.O_DIRECTORY, crosses_mounts=True)
    finally:
        os.close(directory)


def _open_on_host(request: Verify) -> tuple[int, bool]:
    """The host's directory, and whether it is in another mount than the one that the rule names. Raises: OSError."""
    top = os.open(request.below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = os.path.relpath(request.outside, request.below)
        found = open_beneath(top, path, os.O_PATH | os.O_DIRECTORY, crosses_mounts=True)
        return found, proc.mount_id(found) != proc.mount_id(top)
    finally:
        os.close(top)


def _difference(inside: int, outside: int) -> str:
    """How two open directories differ. Raises: OSError."""
    first, second = os.fstat(inside), os.fstat(outside)
    if os.path.samestat(first, second):
        return ""
    return f"device {first.st_dev} and inode {first.st_ino} inside, {second.st_dev} and {second.st_ino} outside"


def _mount_at(path: str, below: str) -> proc.MountInfo | None:
    """The uppermost mount that has a path, if its mount point is below a directory."""
    top = os.path.realpath(below).rstrip("/")
    full = f"{top}/{os.path.relpath(path, below)}"
    best: proc.MountInfo | None = None
    for each in proc.mounts():
        point = each.point
        if point.startswith(f"{top}/") and (full == point or full.startswith(f"{point}/")):
            best = each if best is None or len(point) >= len(best.point) else best
    return best


def release(paths: tuple[str, ...]) -> str:
    """Unmount placeholders and dead mounts at these paths (blocking, bounded). What failed, empty if nothing did.

    A plugin may answer an Unmount before its file system is gone, so that one is waited for.
    """
    problems = []
    for path in map(Path, paths):
        until = time.monotonic() + _UNMOUNT_LIMIT
        try:
            while (state := _clear(path)) in ("live", "hung") and time.monotonic() < until:
                time.sleep(_UNMOUNT_POLL)
        except (OSError, errors.MoorageError) as error:
            problems.append(f"{path}: {error}")
        else:
            problems += [f"{path} is still mounted"] if state != "none" else []
    return "; ".join(problems)


def _clear(path: Path) -> MountState:
    remove_placeholders(path)
    return mount_state(path)
