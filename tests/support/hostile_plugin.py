"""Plugins in Python for tests of attacks: their root shows this machine's /usr, and the program is in their config."""

import io
import json
import tarfile
from typing import Any

from support.engines import EngineProcess

__all__ = ("SOCKET", "add_hostile")

SOCKET = "/run/docker/plugins/plugin.sock"
"""Where the engine expects the socket, as the plugin sees it."""


def add_hostile(house: EngineProcess, name: str, program: str, *arguments: str, **fields: Any) -> None:
    """Create a plugin that runs this program, with these fields of its config; it is not enabled."""
    document = {
        "description": "hostile",
        "entrypoint": ["/usr/bin/python3", "-I", "-S", "-c", program, *arguments],
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": "plugin.sock"},
        "network": {"type": "none"},
        "mounts": [{"source": "/usr", "destination": "/usr", "type": "bind", "options": ["rbind", "ro"]}],
        **fields,
    }
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        raw = json.dumps(document).encode()
        member = tarfile.TarInfo("config.json")
        member.size = len(raw)
        archive.addfile(member, io.BytesIO(raw))
        for path in ("rootfs", "rootfs/usr", "rootfs/tmp"):
            member = tarfile.TarInfo(path)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for path in ("bin", "lib", "lib64"):
            member = tarfile.TarInfo(f"rootfs/{path}")
            member.type, member.linkname = tarfile.SYMTYPE, f"usr/{path}"
            archive.addfile(member)
    headers = {"Content-Type": "application/x-tar"}
    house.request_json("POST", f"/plugins/create?name={name}", stream.getvalue(), headers=headers)
