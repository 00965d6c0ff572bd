"""Which files a plugin has written into its root file system, which a migration leaves behind."""

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from moorage import errors

__all__ = ("find_written_files",)

_OF_THE_RUNTIME = ("dev/", "proc/", "sys/", "run/docker/", "etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv")
"""What dockerd and runc create there."""
_WHITEOUT = ".wh."


def find_written_files(rootfs: Path, layers: Sequence[Path], most: int) -> list[str]:
    """At most ``most`` paths of regular files that differ from the layers by size or time, or are in none.

    Raises:
        errors.Invalid: a layer cannot be read
    """
    packaged: dict[str, tuple[int, int]] = {}
    for layer in layers:
        try:
            _apply(layer, packaged)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise errors.Invalid(f"cannot read {layer}: {error}") from error
    found = []
    for path, size, written_at in _regular_files(rootfs):
        if packaged.get(path) != (size, written_at) and not path.startswith(_OF_THE_RUNTIME):
            found.append(f"/{path}")
            if len(found) == most:
                break
    return found


def _apply(layer: Path, packaged: dict[str, tuple[int, int]]) -> None:
    with tarfile.open(layer, "r:*") as archive:
        for entry in archive:
            path = os.path.normpath(entry.name).lstrip("/")
            folder, _, name = path.rpartition("/")
            if name.startswith(_WHITEOUT):
                packaged.pop(os.path.join(folder, name.removeprefix(_WHITEOUT)), None)
            elif entry.isreg():
                packaged[path] = (entry.size, int(entry.mtime))
            elif entry.islnk():
                target = packaged.get(os.path.normpath(entry.linkname).lstrip("/"))
                if target is not None:
                    packaged[path] = target


def _regular_files(rootfs: Path) -> Iterator[tuple[str, int, int]]:
    device = rootfs.lstat().st_dev
    for folder, folders, names in os.walk(rootfs):
        folders[:] = sorted(each for each in folders if os.lstat(os.path.join(folder, each)).st_dev == device)
        for name in sorted(names):
            path = os.path.join(folder, name)
            found = os.lstat(path)
            if stat.S_ISREG(found.st_mode):
                yield os.path.relpath(path, rootfs), found.st_size, int(found.st_mtime)
