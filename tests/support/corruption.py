"""Damage to the files of containerd's store, as a power cut or a failing disk does it."""

import os
from collections.abc import Callable
from pathlib import Path

CONTENT = "containerd/io.containerd.content.v1.content/blobs/sha256"
METADATA = "containerd/io.containerd.metadata.v1.bolt/meta.db"
SNAPSHOTS = "containerd/io.containerd.snapshotter.v1.overlayfs/metadata.db"


def blob(root: Path, digest: str) -> Path:
    """The file of a blob below an engine's data directory."""
    return root / CONTENT / digest.removeprefix("sha256:")


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _cut_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x20]))


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "emptied": _empty,
    "halved": _halve,
    "one byte short": _cut_last_byte,
    "flipped": _flip,
    "zeroed": _zero,
    "deleted": Path.unlink,
}
