"""A volume driver in memory, as its answers come through the plugin proxy."""

from collections.abc import Mapping
from typing import Any

import anyio

from moorage import errors


class FakeVolumeDriver:
    """Volumes by name; ``failure`` is what every call raises, ``is_stuck`` lets none return."""

    def __init__(self) -> None:
        self.volumes: dict[str, dict[str, Any]] = {}
        self.failure: errors.MoorageError | None = None
        self.is_stuck = False
        self.refusal = ""
        """What it reports to a Create."""
        self.root = "/mnt"
        """Where its volumes are mounted."""

    async def answer(self, method: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.is_stuck:
            await anyio.sleep_forever()
        if self.failure is not None:
            raise self.failure
        name = str(body.get("Name", ""))
        match method:
            case "List":
                return {"Volumes": [self._show(each) for each in self.volumes]}
            case "Capabilities":
                return {"Capabilities": {"Scope": "global"}}
            case "Create":
                if self.refusal:
                    raise errors.MoorageError(self.refusal)
                self.volumes[name] = dict(body["Opts"])
                return {}
            case _:
                pass
        if name not in self.volumes:
            raise errors.MoorageError(f"volume {name} not found")
        match method:
            case "Get":
                return {"Volume": {**self._show(name), "CreatedAt": "2026-01-02T03:04:05Z", "Status": {"size": 7}}}
            case "Mount":
                return {"Mountpoint": f"{self.root}/{name}"}
            case "Remove":
                del self.volumes[name]
            case _:
                pass
        return {}

    def _show(self, name: str) -> dict[str, Any]:
        return {"Name": name, "Mountpoint": f"{self.root}/{name}"}
