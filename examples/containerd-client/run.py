"""Run one command in a container and wait for its exit, with moorage's containerd client and nothing else of it.

Usage (root): run.py SOCKET COMMAND [ARGUMENT...]; the container sees this machine's /usr, read-only, and nothing more.
"""

import os
import sys
import tempfile
from pathlib import Path

import anyio
import anyio.to_thread

from moorage import containerd, errors
from moorage.containerd import types

NAME = f"moorage-example-{os.getpid()}"  # several may run at once


def make_spec(root: Path, arguments: list[str]) -> types.Spec:
    """A container with a process of its own and the host's programs."""
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    return {
        "ociVersion": "1.0.2",
        "process": {"args": arguments, "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": str(root)},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            "cgroupsPath": f"/{NAME}",  # always give one: without it, creating takes 16 ms longer
        },
    }


async def run(client: containerd.Client, directory: Path, arguments: list[str]) -> types.ProcessExit:
    """The order matters: FIFOs with open read ends, record, task, start; later task, then record."""
    root, streams = directory / "root", directory / "streams"
    root.mkdir()
    streams.mkdir()
    containerd.make_fifos(streams)
    stdio = containerd.open_stdio(streams)
    stdout, stderr = str(stdio.stdout.path), str(stdio.stderr.path)

    async def show(reader: containerd.FifoReader, target: int) -> None:
        while data := await reader.read():
            await anyio.to_thread.run_sync(write_all, target, data)

    await client.create_container(NAME, make_spec(root, arguments), types.RuntimeOptions())
    try:
        await client.create_task(NAME, stdout=stdout, stderr=stderr)
        await client.start_task(NAME)
        async with anyio.create_task_group() as copies:  # ends at the end of both streams: output first, then delete
            copies.start_soon(show, stdio.stdout, 1)
            copies.start_soon(show, stdio.stderr, 2)
        await client.wait(NAME, within=3600)
        return await client.delete_task(NAME)
    finally:
        stdio.close()
        await client.delete_container(NAME)


def write_all(target: int, data: bytes) -> None:
    """All of it: a pipe may take less at a time."""
    while data:
        data = data[os.write(target, data) :]


async def main(address: str, arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as directory:
        async with containerd.connect(address, "default") as client:
            print("containerd", (await client.version()).version, file=sys.stderr)
            return (await run(client, Path(directory), arguments)).code


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: run.py SOCKET COMMAND [ARGUMENT...]")
    try:
        sys.exit(anyio.run(main, sys.argv[1], sys.argv[2:]))
    except errors.MoorageError as error:
        sys.exit(f"run.py: {error}")
