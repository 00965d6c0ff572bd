"""A volume driver of directories that are shown by bind mounts; moorage/kit beside it does the rest.

Below the propagated mount, which the host sees and which outlives the plugin:

    volumes.json        the volumes and their users
    store/NAME/         what the users of a volume have written
    mounted/NAME        where it is mounted while it is in use
"""

import os
import re
import shutil
from pathlib import Path

from moorage.kit import CallFailed, SimpleVolumeDriver, StoredVolume, bind_mount, serve, unmount

ROOT = Path(os.environ.get("HELLO_ROOT", "/mnt/volumes"))


class HelloVolume(SimpleVolumeDriver):
    """Each method may be repeated: after a kill in the middle of it, it is."""

    def make(self, volume: StoredVolume) -> None:
        if unknown := sorted(set(volume.options) - {"mode"}):
            raise CallFailed(f"unknown option {', '.join(map(repr, unknown))}: there is only mode")
        mode = volume.options.get("mode", "0755")
        if not re.fullmatch("[0-7]{3,4}", mode):
            raise CallFailed(f"{mode!r} is not a mode: three or four octal digits, as in 0750")
        data = ROOT / "store" / volume.name
        data.mkdir(parents=True, exist_ok=True)
        data.chmod(int(mode, 8))  # mkdir(2) would apply the umask

    def attach(self, volume: StoredVolume) -> str:
        point = ROOT / "mounted" / volume.name
        bind_mount(ROOT / "store" / volume.name, point)
        return str(point)

    def detach(self, volume: StoredVolume, lazy: bool) -> None:
        unmount(ROOT / "mounted" / volume.name, lazy=lazy)

    def delete(self, volume: StoredVolume) -> None:
        if (ROOT / "store" / volume.name).exists():
            shutil.rmtree(ROOT / "store" / volume.name)


if __name__ == "__main__":
    serve(HelloVolume(ROOT / "volumes.json"), socket="hello.sock")
