"""What the proxy checks and unmounts on the host, in threads: file systems of plugins may hang (rows P07, P11a)."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moorage import errors
from moorage.host import proc
from moorage.host.directory_tree import FileIdentity, file_identity, open_beneath
from moorage.host.mount_points.placeholders import remove_placeholders
from moorage.host.mounts import MountState, is_in_placeholder, mount_state
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
    point, is_covered = "", False
    try:
        with _opened(proc.root_path(request.pid)) as root, _opened_beneath(root, request.inside) as inside:
            first = file_identity(inside)
        with _opened(request.below) as top, _opened_beneath(top, _rest(request)) as outside:
            second = file_identity(outside)
            found = _difference(first, second)
            if not found:
                point = _mount_point(request, top, second.mount)
                is_covered = point != "" and is_in_placeholder(outside, point)
    except OSError as error:
        found = f"cannot open {error.filename or request.outside}: {error.strerror}"
    if found:
        return (
            f"the plugin mounted at {request.inside}, which is not {request.outside} of the host ({found}): "
            "its mount is not propagated, so its config needs a propagatedMount above that path"
        ), ""
    if is_covered:
        return f"the plugin answered, but mounted nothing over the placeholder at {point}", ""
    if not point and request.needs_mount:
        return f"the plugin answered, but mounted nothing at {request.outside}", ""
    return "", point


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """A directory, for the length of the block. Raises: OSError."""
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


@contextmanager
def _opened_beneath(top: int, path: str) -> Iterator[int]:
    """A directory beneath another one; no link is followed, so that it leads nowhere else. Raises: OSError."""
    directory = open_beneath(top, path.strip("/") or ".", os.O_PATH | os.O_DIRECTORY, crosses_mounts=True)
    try:
        yield directory
    finally:
        os.close(directory)


def _rest(request: Verify) -> str:
    """The host's path relative to the directory that the rule names."""
    return os.path.relpath(request.outside, request.below)


def _mount_point(request: Verify, top: int, mount: int) -> str:
    """Where the mount of the host's path is mounted, below the directory of the rule; empty if it has that one, too.

    By the ids of the mounts of the directories between: the list of all mounts takes milliseconds where there are many.
    Raises: OSError.
    """
    if file_identity(top).mount == mount:
        return ""
    parts = _rest(request).split("/")
    while len(parts) > 1:
        with _opened_beneath(top, "/".join(parts[:-1])) as directory:
            if file_identity(directory).mount != mount:
                break
        parts.pop()
    return "/".join((os.path.realpath(request.below).rstrip("/"), *parts))


def _difference(inside: FileIdentity, outside: FileIdentity) -> str:
    """How two open directories differ."""
    if (inside.device, inside.inode) == (outside.device, outside.inode):
        return ""
    first, second = (f"device {each.device[0]}:{each.device[1]} and inode {each.inode}" for each in (inside, outside))
    return f"{first} inside, {second} outside"


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
