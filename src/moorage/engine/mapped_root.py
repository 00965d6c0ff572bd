"""The root file system of a plugin with a user namespace of its own: its files have ids of that namespace.

Layers are shared with other plugins, so their owners are mapped by the mount. What the plugin has written is its own,
and has mapped owners on disk: overlay changes files with the ids of whoever has mounted it, which have no place in a
mapping. Source: docs/adr/0026-user-namespaces.md. Everything here blocks.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from moorage import errors
from moorage.containerd.types import Mount
from moorage.engine.mounts import mount_all, unmount_all_below
from moorage.host.id_mapping import bind_mapped, open_user_namespace, shift_owners

__all__ = ("mount_mapped_root", "settle_owners")


def settle_owners(mounts: Sequence[Mount], base: int) -> None:
    """Give what a plugin has written the owners that it has under this base; 0 is no user namespace.

    Raises: OSError naming what could not be changed.
    """
    for mount in mounts:
        if upper := _option(mount, "upperdir"):
            shift_owners(Path(upper), base)


def mount_mapped_root(mounts: Sequence[Mount], target: Path, base: int, scratch: Path) -> None:
    """Make the mounts of a snapshot at ``target`` for the user namespace at this base; ``scratch`` is made and removed.

    Raises: Unsupported where the kernel or the file system cannot map owners.
    """
    namespace = open_user_namespace(base)
    try:
        scratch.mkdir(mode=0o700, exist_ok=True)
        for number, mount in enumerate(mounts):
            if mount.type == "bind":
                bind_mapped(Path(mount.source), target, namespace)
            elif mount.type == "overlay":
                mount_all([_with_mapped_layers(mount, namespace, scratch / str(number))], target)
            else:
                raise errors.Unsupported(f"cannot map the owners of files on a {mount.type} mount")
    finally:
        os.close(namespace)
        unmount_all_below(scratch)  # overlay has its own copies of the mounts
        _remove(scratch)


def _with_mapped_layers(mount: Mount, namespace: int, scratch: Path) -> Mount:
    scratch.mkdir(mode=0o700, exist_ok=True)
    layers = []
    for number, layer in enumerate(_option(mount, "lowerdir").split(":")):
        shown = scratch / str(number)
        shown.mkdir(exist_ok=True)
        bind_mapped(Path(layer), shown, namespace)
        layers.append(str(shown))
    rest = [each for each in mount.options if not each.startswith("lowerdir=")]
    return replace(mount, options=(*rest, f"lowerdir={':'.join(layers)}"))


def _option(mount: Mount, name: str) -> str:
    return next((each.partition("=")[2] for each in mount.options if each.startswith(f"{name}=")), "")


def _remove(scratch: Path) -> None:
    for directory in (*scratch.glob("*/*"), *scratch.glob("*"), scratch):
        if directory.is_dir():
            directory.rmdir()
