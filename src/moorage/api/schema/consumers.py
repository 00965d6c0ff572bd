"""How plugins are used: published sockets, mounts, and volumes of volume drivers."""

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from moorage.api.schema.base import ApiObject

__all__ = (
    "MountedVolume",
    "PluginMountUse",
    "PluginPublication",
    "PublishRequest",
    "SilentDriver",
    "VolumeDetails",
    "VolumeList",
    "VolumeMountRequest",
    "VolumeRequest",
)

WhileDisabled = Literal["auto", "unlink", "answer"]


class PluginPublication(ApiObject, frozen=True):
    """How consumers reach a plugin."""

    names: list[str]
    """Names of its sockets in the directory of published sockets, without ``.sock``."""
    group: str = ""
    """Whose members may connect, besides root."""
    mode: str = "0600"
    """Of the sockets, in octal."""
    while_disabled: str = "auto"
    while_unhealthy: str = "forward"
    replay: bool = True
    """Whether mounts and log files are sent again to a plugin that was started again."""
    at_once: int = 100
    """Most calls that are forwarded at the same time."""
    time_limits: dict[str, int | float] = field(default_factory=dict)
    """Seconds by call; a call that is absent has the usual limit."""
    podman: bool | None = None
    """Whether it is in podman's configuration; None where that depends on whether podman is installed."""


class PluginMountUse(ApiObject, frozen=True):
    """A mount of a volume that a consumer has requested and not released."""

    volume: str
    id: str
    path: str
    """On the host."""
    consumer: str
    since: str
    problem: str = ""
    """Why it could not be mounted again after a restart of the plugin; empty where it is mounted."""
    stale: bool = False
    """Programs that used it before the plugin was restarted still see the dead mount."""


class PublishRequest(Struct, frozen=True):
    """How to publish a plugin; what is absent has its default."""

    names: list[str] | UnsetType = UNSET
    """Names for its sockets; its own name where there are none."""
    group: str | UnsetType = UNSET
    while_disabled: WhileDisabled | UnsetType = UNSET
    while_unhealthy: Literal["forward", "fail"] | UnsetType = UNSET
    replay: bool | UnsetType = UNSET
    at_once: int | UnsetType = UNSET
    time_limits: Mapping[str, int | float] | UnsetType = UNSET
    podman: bool | UnsetType = UNSET
    force: bool | UnsetType = UNSET


class VolumeDetails(ApiObject, frozen=True):
    """A volume as its driver shows it, with its users. Created, scope, status and options may be absent or empty."""

    name: str
    driver: str
    mountpoint: str = ""
    """On the host; empty while it is not mounted."""
    created_at: str = ""
    scope: str = ""
    """local or global."""
    status: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    mounts: list[PluginMountUse] = field(default_factory=list)


class SilentDriver(ApiObject, frozen=True):
    """A volume driver that did not list its volumes."""

    driver: str
    message: str


class VolumeList(ApiObject, frozen=True):
    """The volumes of all drivers, by name."""

    volumes: list[VolumeDetails]
    failures: list[SilentDriver] = field(default_factory=list)


class VolumeRequest(Struct, frozen=True):
    """A new volume; options are the driver's."""

    name: str | UnsetType = UNSET
    driver: str | UnsetType = UNSET
    options: Mapping[str, str] | UnsetType = UNSET


class VolumeMountRequest(Struct, frozen=True):
    """The owner of a mount, as text; the name of the volume where it is absent."""

    owner: str | UnsetType = UNSET


class MountedVolume(ApiObject, frozen=True):
    """Where a volume is mounted."""

    mountpoint: str
    """On the host."""
    driver: str
