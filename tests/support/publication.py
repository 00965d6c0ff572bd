"""Consumers of published sockets, and the processes behind them, for tests."""

import http.client
import json
from pathlib import Path
from typing import Any

from support import leftovers
from support.drivers import create_driver, driver_config
from support.engines import EngineProcess, UnixConnection
from support.limits import limit
from support.proxy_process import parent

WITHIN = limit(60.0)

__all__ = ("Consumer", "Driver", "guard_pid", "proxy_pid")


class Consumer:
    """A program that calls a published socket, one connection for each call, as podman does."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    def call(self, method: str, body: Any = None, *, within: float = WITHIN) -> tuple[int, dict[str, Any]]:
        """POST /METHOD; status and answer."""
        connection = UnixConnection(self.socket, limit(within))
        try:
            connection.request("POST", f"/{method}", json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def try_call(self, method: str, body: Any = None) -> int:
        """The status; 0 where the connection broke."""
        try:
            return self.call(method, body)[0]
        except (OSError, http.client.HTTPException):
            return 0

    def create_and_mount(self, volume: str, id: str = "one") -> Path:
        """The host's path of a new volume that is mounted."""
        assert self.call("VolumeDriver.Create", {"Name": volume})[0] == 200
        return self.mount(volume, id)

    def mount(self, volume: str, id: str = "one") -> Path:
        status, answer = self.call("VolumeDriver.Mount", {"Name": volume, "ID": id})
        assert status == 200, answer
        return Path(answer["Mountpoint"])

    def unmount(self, volume: str, id: str = "one") -> None:
        status, answer = self.call("VolumeDriver.Unmount", {"Name": volume, "ID": id})
        assert status == 200, answer


class Driver(Consumer):
    """A volume driver of an engine, with a file system of its own (FUSE), that is published under its name."""

    def __init__(self, house: EngineProcess, base: Path, name: str = "v", **fields: Any) -> None:
        self.house, self.name, self.data = house, name, base / f"data-{name.replace('/', '-')}"
        self.data.mkdir()
        create_driver(house, name, driver_config("volume", self.data, **fields))
        super().__init__(house.published / f"{house.inspect(name)['Name']}.sock")
        self.publish()

    def publish(self, *names: str, **fields: Any) -> Any:
        return self.house.request_own("POST", self.name, "publish", {"Names": list(names), **fields})

    def unpublish(self, *, force: bool = False) -> None:
        self.house.request_own("POST", self.name, f"unpublish{'?force=1' if force else ''}")

    @property
    def pid(self) -> int:
        return int(self.house.more(self.name)["Pid"])

    @property
    def mounts(self) -> list[dict[str, Any]]:
        return list(self.house.more(self.name)["Mounts"])

    def mounts_on_host(self) -> list[str]:
        """Mount points below its propagated mount."""
        top = self.house.root / "plugins" / self.house.inspect(self.name)["Id"] / "propagated-mount"
        return [each for each in leftovers.mounts_below(top) if each != str(top)]


def proxy_pid(house: EngineProcess) -> int:
    """The plugin proxy of an engine."""
    return int((house.exec_root / "proxy/pid").read_text())


def guard_pid(house: EngineProcess) -> int:
    """The process that starts the plugin proxy again; the kernel kills the proxy with it."""
    return parent(proxy_pid(house))
