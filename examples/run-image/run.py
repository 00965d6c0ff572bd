"""Pull an image and run a container of it. Usage (root): run.py SOCKET IMAGE [ARGUMENT...]"""

import os
import sys
import tempfile
from pathlib import Path

import anyio

from moorage import containerd, errors
from moorage.containerd.types import RuntimeOptions

NAME = f"example-{os.getpid()}"


async def main(address: str, reference: str, arguments: list[str]) -> int:
    async with containerd.connect(address, "default") as client:
        image = await client.pull(reference)
        key = {"snapshotter": image.snapshotter, "snapshot_key": NAME}
        spec = containerd.container_spec(image.config, arguments, cgroup=f"/{NAME}")
        await client.create_container(NAME, spec, RuntimeOptions(), image=image.name, **key)
        rootfs = await client.storage.prepare_snapshot(image.snapshotter, NAME, image.snapshot)
        with tempfile.TemporaryDirectory() as directory:
            containerd.make_fifos(Path(directory))
            stdio = containerd.open_stdio(Path(directory))
            await client.create_task(NAME, stdout=f"{directory}/stdout", stderr=f"{directory}/stderr", rootfs=rootfs)
            await client.start_task(NAME)
            while data := await stdio.stdout.read():
                os.write(1, data)
            await client.wait(NAME, within=3600)
            code = (await client.delete_task(NAME)).code
            stdio.close()
        await client.storage.remove_snapshot(image.snapshotter, NAME)
        await client.delete_container(NAME)
        return code


if __name__ == "__main__":
    try:
        sys.exit(anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:]))
    except errors.MoorageError as error:
        sys.exit(f"run.py: {error}")
