"""Layers made of directories, the same bytes each time: entries sorted by name, no names of users, fixed times.

An author's files belong to root, cannot be written to by group and others, and have one time, so that a checkout by
another user on another day gives the same layer. A base keeps owners, modes and times of its files: compiled Python is
only valid with the time of its source.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage.oci.descriptor import Descriptor
from moorage.oci.media_types import DOCKER_LAYER_GZIP
from moorage.package_build.blob_store import BlobStore, LayerWriter
from moorage.packages.tar import FORMAT, PIECE_BYTES

__all__ = ("LayerOptions", "write_layer")

_XATTRS = ("security.capability", "user.")
_SKIPPED = "__pycache__"


class LayerOptions(Struct, frozen=True):
    """How files become entries."""

    epoch: int
    """Seconds since 1970: the time of the author's files, and the latest of a base."""
    is_base: bool = False
    """Whether owners, modes and times are preserved."""


def write_layer(store: BlobStore, sources: dict[str, Path], options: LayerOptions) -> tuple[Descriptor, str]:
    """A layer with these directories, by their names in it ("" is the root); its descriptor and diff id (blocking).

    A name of a later source replaces that of an earlier one.

    Raises:
        errors.Invalid: naming the file that cannot be read or be in a layer
    """
    entries: dict[str, Path] = {}
    for prefix, directory in sources.items():
        for parent in _parents(prefix):
            entries.setdefault(parent, directory)
        if prefix:  # files of an earlier source, a kit of another version, are not mixed with it
            entries = {name: path for name, path in entries.items() if not f"{name}/".startswith(f"{prefix}/")}
        entries.update(_walk(directory, prefix, is_base=options.is_base))
    first_links: dict[tuple[int, int], str] = {}
    try:
        with LayerWriter(store) as layer:
            with tarfile.TarFile(fileobj=layer, mode="w", copybufsize=PIECE_BYTES, **FORMAT) as tar:  # type: ignore[arg-type]
                for name, path in sorted(entries.items()):
                    _add(tar, name, path, options, first_links)
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep every entry
            return layer.finish(DOCKER_LAYER_GZIP)
    except OSError as error:
        raise errors.Invalid(f"cannot read {error.filename or 'a file'}: {error.strerror or error}") from error


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    for count in range(1, len(parts)):
        yield "/".join(parts[:count])


def _walk(directory: Path, prefix: str, *, is_base: bool) -> Iterator[tuple[str, Path]]:
    """All entries below a directory with their names, itself too. Raises: OSError."""
    yield prefix or ".", directory
    waiting = [(directory, prefix)]
    while waiting:
        parent, name = waiting.pop()
        for entry in os.scandir(parent):
            if entry.name == _SKIPPED and not is_base:
                continue
            inner = f"{name}/{entry.name}" if name else entry.name
            yield inner, Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), inner))


def _add(
    tar: tarfile.TarFile, name: str, path: Path, options: LayerOptions, first_links: dict[tuple[int, int], str]
) -> None:
    status = path.lstat()
    if stat.S_ISSOCK(status.st_mode):
        return  # of a program that ran in a base; tar has no sockets
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), min(int(status.st_mtime), options.epoch)
    entry.uid, entry.gid = status.st_uid, status.st_gid
    if not options.is_base:
        entry.mode, entry.mtime, entry.uid, entry.gid = entry.mode & ~0o022, options.epoch, 0, 0
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
    elif stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
    elif stat.S_ISFIFO(status.st_mode):
        entry.type = tarfile.FIFOTYPE
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        entry.type = tarfile.CHRTYPE if stat.S_ISCHR(status.st_mode) else tarfile.BLKTYPE
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif status.st_nlink > 1 and (first := first_links.setdefault((status.st_dev, status.st_ino), name)) != name:
        entry.type, entry.linkname = tarfile.LNKTYPE, first
    else:
        _add_file(tar, entry, path)
        return
    tar.addfile(entry)


def _add_file(tar: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
    with path.open("rb") as file:
        entry.size = os.fstat(file.fileno()).st_size
        entry.pax_headers = {
            f"SCHILY.xattr.{each}": os.getxattr(path, each).decode("utf-8", "surrogateescape")
            for each in sorted(os.listxattr(path))
            if each.startswith(_XATTRS)
        }
        tar.addfile(entry, file)
