"""Sources of bind mounts that cannot be exchanged between the check of their path and the mount.

A user who can write to a directory above a source can replace it by a symbolic link at any time. So a source is opened
once, the kernel says which real path the descriptor has, and what the descriptor refers to is bound to a directory that
only root can write to. The runtime gets that as source until the container is created. Everything here blocks.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from moorage import errors
from moorage._lib.time_limit import call_bounded
from moorage.host.mounts import bind_descriptor, unmount_all_below
from moorage.host.proc import descriptor_path
from moorage.plugins import MountEntry, Settings
from moorage.timeouts import DEFAULT

__all__ = ("Check", "pin_sources", "release_pins")

_SHARED = frozenset({"shared", "rshared"})

_RESPONSE = DEFAULT.path_answer
"""Seconds until the file system of a source must have answered."""

Check = Callable[[MountEntry, str], bool]
"""Given a bind and the real path of its source: whether mounts below the source may be shown, too.

Raises: Denied where the path itself may not be bound.
"""


def pin_sources(settings: Settings, directory: Path, check: Check) -> Settings:
    """The same settings with the source of each bind pinned in ``directory`` after ``check``.

    A source that does not exist stays as it is, for the error that names its entry. May be repeated: what was pinned
    for an earlier run is released first.

    Raises: Denied by ``check``.
    Raises: Unavailable naming what cannot be pinned.
    """
    release_pins(directory)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return replace(
        settings,
        mounts=tuple(
            replace(each, source=_pin(each, directory / str(index), check)) if each.is_bind and each.source else each
            for index, each in enumerate(settings.mounts)
        ),
    )


def release_pins(directory: Path) -> None:
    """Unmount everything that is pinned in a directory, and remove it. May be repeated.

    Raises: Unavailable naming what stays.
    """
    if not directory.is_dir():
        return
    try:
        unmount_all_below(directory)
        for each in directory.iterdir():
            each.rmdir() if each.is_dir() else each.unlink()
        directory.rmdir()
    except OSError as error:
        raise errors.Unavailable(f"cannot remove {error.filename or directory}: {error.strerror}") from error


def _pin(mount: MountEntry, target: Path, check: Check) -> str:
    source = mount.source or ""
    try:
        opened = call_bounded(lambda: _Opened(source), _RESPONSE, f"open mount source {source}", owner=str(target))
    except (FileNotFoundError, NotADirectoryError):
        return source
    except OSError as error:
        raise errors.Unavailable(f"cannot open mount source {source}: {error.strerror}") from error
    try:
        is_deep = check(mount, opened.real) and mount.is_recursive
        if opened.is_directory:
            target.mkdir(mode=0o700)
        else:
            target.touch(mode=0o600)
        is_shared = bool(_SHARED & set(mount.options))
        bind_descriptor(opened.descriptor, target, is_recursive=is_deep, is_shared=is_shared)
    except OSError as error:
        raise errors.Unavailable(f"cannot bind mount source {source}: {error.strerror}") from error
    finally:
        opened.close()
    return str(target)


class _Opened:
    """A path, opened without reading it. It closes itself where the open was abandoned because it took too long."""

    descriptor = -1

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.real = os.readlink(descriptor_path(self.descriptor))
        self.is_directory = stat.S_ISDIR(os.fstat(self.descriptor).st_mode)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = close
