"""A volume driver of which only four methods are missing: make, attach, detach and delete the data of a volume."""

import re
from collections.abc import Sequence
from pathlib import Path

from moorage.kit.drivers.volume import CreateVolume, MountVolume, VolumeDriver, VolumeInfo, VolumeName
from moorage.kit.failures import CallFailed
from moorage.kit.mount_table import MountTable, StoredVolume

__all__ = ("SimpleVolumeDriver",)

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")  # dockerd's; never begins with a dot


class SimpleVolumeDriver(VolumeDriver):
    """A volume driver with a ``MountTable``. Each of the four methods may be repeated after a kill at any moment."""

    def __init__(self, state: Path) -> None:
        """``state``: the file of the table, below the propagated mount."""
        self.table = MountTable(state, self.attach, self.detach)

    def make(self, volume: StoredVolume) -> None:
        """Make the data of a new volume; ``volume.options`` may be refused with ``CallFailed``."""

    def attach(self, volume: StoredVolume) -> str:
        """Mount a volume for its first user; its path in the plugin."""
        raise NotImplementedError

    def detach(self, volume: StoredVolume, lazy: bool) -> None:
        """Undo ``attach``, with ``lazy`` also while files are open; nothing attached is no failure."""

    def delete(self, volume: StoredVolume) -> None:
        """Delete the data of a volume that no user has."""

    # the protocol

    def start(self) -> None:
        """Make the mounts as the file says."""
        self.table.recover(self.delete)

    def stop(self) -> None:
        """Detach everything; the users stay in the file."""
        self.table.detach_all()

    def create(self, request: CreateVolume) -> None:
        """As the protocol has it, by ``make``."""
        self.table.create(_checked(request.name), request.opts, self.make)

    def remove(self, request: VolumeName) -> None:
        """As the protocol has it, by ``delete``."""
        self.table.remove(_checked(request.name), self.delete)

    def mount(self, request: MountVolume) -> str:
        """As the protocol has it, by ``attach``."""
        return self.table.mount(_checked(request.name), request.id)

    def unmount(self, request: MountVolume) -> None:
        """As the protocol has it, by ``detach``."""
        self.table.unmount(_checked(request.name), request.id)

    def path(self, request: VolumeName) -> str:
        """Where a volume is mounted."""
        return self.table.get(_checked(request.name)).mountpoint

    def get(self, request: VolumeName) -> VolumeInfo:
        """One volume."""
        return self.describe(self.table.get(_checked(request.name)))

    def list(self) -> Sequence[VolumeInfo]:
        """All volumes."""
        return [self.describe(each) for each in self.table.volumes()]

    def describe(self, volume: StoredVolume) -> VolumeInfo:
        """A volume for ``docker volume inspect``."""
        status = {"Users": list(volume.users), "Options": dict(volume.options)}
        return VolumeInfo(volume.name, volume.mountpoint, volume.created_at, status)


def _checked(name: str) -> str:
    """A name that is one component of a path. Raises: CallFailed."""
    if not _NAME.fullmatch(name):
        raise CallFailed(
            f"{name!r} is not the name of a volume: 1 to 128 of a-z A-Z 0-9 _ . - with a letter or digit first"
        )
    return name
