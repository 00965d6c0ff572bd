"""Calls for programs that use plugins: published sockets, and volumes."""

from collections.abc import Mapping

from moorage.api.schema.consumers import (
    MountedVolume,
    PublishRequest,
    VolumeDetails,
    VolumeList,
    VolumeMountRequest,
    VolumeRequest,
)
from moorage.api.schema.plugins import PluginDetails
from moorage.client.transport import OWN, EngineTransport, quoted

__all__ = ("ConsumerClient",)


class ConsumerClient(EngineTransport):
    """Calls for volumes and published plugins. Without a driver, every volume driver is queried for a volume."""

    def publish(self, name: str, request: PublishRequest | None = None) -> PluginDetails:
        """Give a plugin sockets for consumers; the plugin as it is afterwards."""
        path = f"{OWN}/plugins/{quoted(name)}/publish"
        return self._send(PluginDetails, "POST", path, body=request or PublishRequest())

    def unpublish(self, name: str, *, force: bool = False) -> None:
        """Remove the sockets of a plugin."""
        self._do("POST", f"{OWN}/plugins/{quoted(name)}/unpublish", {"force": "1"} if force else {})

    def volumes(self, driver: str = "") -> VolumeList:
        """The volumes of every volume driver, or of one, and the drivers that did not answer."""
        return self._get(VolumeList, f"{OWN}/volumes", _of(driver))

    def create_volume(self, name: str, driver: str, options: Mapping[str, str] | None = None) -> VolumeDetails:
        """Create a volume."""
        body = VolumeRequest(name=name, driver=driver, options=dict(options or {}))
        return self._send(VolumeDetails, "POST", f"{OWN}/volumes", body=body)

    def volume(self, name: str, driver: str = "") -> VolumeDetails:
        """One volume, with its scope and its users."""
        return self._get(VolumeDetails, _volume(name), _of(driver))

    def remove_volume(self, name: str, driver: str = "", *, force: bool = False) -> None:
        """Remove a volume."""
        self._do("DELETE", _volume(name), {**_of(driver), **({"force": "1"} if force else {})})

    def mount_volume(self, name: str, owner: str = "", driver: str = "") -> MountedVolume:
        """Mount a volume for an owner, the volume's name by default; repeating it changes nothing."""
        body = VolumeMountRequest(owner=owner or name)
        return self._send(MountedVolume, "POST", f"{_volume(name)}/mount", _of(driver), body=body)

    def unmount_volume(self, name: str, owner: str = "", driver: str = "") -> None:
        """Release the mount of an owner."""
        self._do("POST", f"{_volume(name)}/unmount", _of(driver), body=VolumeMountRequest(owner=owner or name))


def _volume(name: str) -> str:
    return f"{OWN}/volumes/{quoted(name)}"


def _of(driver: str) -> dict[str, str]:
    return {"driver": driver} if driver else {}
