"""The root file system of a plugin with a user namespace of its own: its files have ids of that namespace.

Layers are shared with other plugins, so their owners are mapped by the mount. What the plugin has written is its own,
and has mapped owners on disk: overlay changes files with the ids of the process that mounted it, which are not in the
mapping. Source: docs/adr/0026-user-namespaces.md. Everything here blocks.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from moorage import errors
from moorage.containerd.types import Mount
from moorage.host.directory_tree import Directory
from moorage.host.id_mapping import bind_mapped, open_user_namespace, shift_owners
from moorage.host.mounts import mount_all, unmount_all_below

__all__ = ("MountedIdBase", "make_idmapped_view", "mount_idmapped_root", "shift_upper_owners")

_PREFIX = "ids-"
_NAME = re.compile(r"ids-(\d+)")


class MountedIdBase:
    """For which user namespace a plugin's root is mounted: the name of an entry in its run-time directory."""

    def __init__(self, runtime: Directory) -> None:
        self._runtime = runtime

    def get(self) -> int:
        """First host id of the namespace; 0 for none."""
        found = [int(match[1]) for name in os.listdir(self._runtime.fileno()) if (match := _NAME.fullmatch(name))]
        return found[0] if found else 0

    def set(self, id_base: int) -> None:
        """Record it."""
        self._runtime.make_directory(f"{_PREFIX}{id_base}", mode=0o700, exist_ok=True).close()

    def clear(self) -> None:
        """Remove the record."""
        for name in os.listdir(self._runtime.fileno()):
            if _NAME.fullmatch(name):
                self._runtime.remove(name)


def make_idmapped_view(view: Path, id_base: int) -> Path:
    """Make ``<exec-root>/u/<plugin>/<name>``, which only root and the plugin's root can enter; the same path.

    Raises: Unavailable for a directory above it that only root can enter.
    """
    own, views, base = view.parents[0], view.parents[1], view.parents[2]
    base.chmod(base.stat().st_mode | 0o011)  # as it is made; what is in it has modes of its own
    for directory in base.parents:
        if not directory.stat().st_mode & 0o001:
            raise errors.Unavailable(
                f"cannot give the plugin a user namespace of its own: users cannot enter {directory}; "
                f"chmod o+x {directory}, or choose another --exec-root"
            )
    with (
        Directory.open(base) as top,
        top.make_directory(views.name, mode=0o711, exist_ok=True) as all_views,
        all_views.make_directory(own.name, mode=0o700, uid=id_base, gid=id_base, exist_ok=True) as entered,
    ):
        entered.make_directory(view.name, mode=0o755, exist_ok=True).close()
    return view


def shift_upper_owners(mounts: Sequence[Mount], base: int) -> None:
    """Change the owners of what a plugin has written to those that it has under this base; 0 is no user namespace.

    Raises: OSError naming what could not be changed.
    """
    for mount in mounts:
        if upper := _option(mount, "upperdir"):
            shift_owners(Path(upper), base)


def mount_idmapped_root(mounts: Sequence[Mount], target: Path, base: int, scratch: Path) -> None:
    """Mount a snapshot at ``target`` for the user namespace at this base; ``scratch`` is made and removed.

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
