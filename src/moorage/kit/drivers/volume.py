"""Volume drivers: ``docker.volumedriver/1.0``, for dockerd and podman.

Source: moby's volume/drivers (adapter, proxy), podman's libpod/plugin/volume_api.go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from moorage.kit.driver import Driver, DriverCall, Eventually

__all__ = ("CreateVolume", "MountVolume", "VolumeDriver", "VolumeInfo", "VolumeName")


@dataclass(frozen=True)
class CreateVolume:
    """Create a volume."""

    name: str
    opts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VolumeName:
    """Names a volume."""

    name: str


@dataclass(frozen=True)
class MountVolume:
    """Mount or unmount a volume for a user of it."""

    name: str
    id: str
    """Of the user: dockerd gives each container another one, podman the same to all."""


@dataclass(frozen=True)
class VolumeInfo:
    """A volume as ``get`` and ``list`` describe it."""

    name: str
    mountpoint: str = ""
    """Path in the plugin where it is mounted; empty while it is not."""
    created_at: str | None = None
    """As RFC 3339 has it: 2026-01-31T12:00:00Z."""
    status: dict[str, Any] | None = None
    """Anything, for ``docker volume inspect``."""


class VolumeDriver(Driver):
    """A volume driver. ``SimpleVolumeDriver`` needs only what is particular to one."""

    kind: ClassVar[str] = "VolumeDriver"
    scope: ClassVar[str] = "local"
    """``local`` or ``global``: whether a volume is the same on every machine."""
    calls: ClassVar[Mapping[str, DriverCall]] = {
        "Create": DriverCall("create", CreateVolume),
        "Remove": DriverCall("remove", VolumeName),
        "Mount": DriverCall("mount", MountVolume, lambda point: {"Mountpoint": point}),
        "Unmount": DriverCall("unmount", MountVolume),
        "Path": DriverCall("path", VolumeName, lambda point: {"Mountpoint": point}),
        "Get": DriverCall("get", VolumeName, lambda volume: {"Volume": volume}),
        "List": DriverCall("list", None, lambda volumes: {"Volumes": volumes}),
        "Capabilities": DriverCall("capabilities", None, lambda scope: {"Capabilities": {"Scope": scope}}),
    }

    def create(self, request: CreateVolume) -> Eventually[None]:
        """Create a volume; repeated with the same options it succeeds."""
        raise NotImplementedError

    def remove(self, request: VolumeName) -> Eventually[None]:
        """Remove a volume that is not mounted."""
        raise NotImplementedError

    def mount(self, request: MountVolume) -> Eventually[str]:
        """Mount a volume for a user; its path in the plugin, below ``propagatedMount``."""
        raise NotImplementedError

    def unmount(self, request: MountVolume) -> Eventually[None]:
        """The user does not need it any more; the last one unmounts it. An unknown user is no failure."""
        raise NotImplementedError

    def path(self, request: VolumeName) -> Eventually[str]:
        """Where a volume is mounted; empty while it is not."""
        raise NotImplementedError

    def get(self, request: VolumeName) -> Eventually[VolumeInfo]:
        """One volume."""
        raise NotImplementedError

    def list(self) -> Eventually[Sequence[VolumeInfo]]:
        """All volumes."""
        raise NotImplementedError

    def capabilities(self) -> Eventually[str]:
        """The scope of its volumes."""
        return self.scope
