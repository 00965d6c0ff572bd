"""Keep one container across restarts of this program: the first start creates it, every later one finds it again.

Usage (root): worker.py SOCKET STATE_DIRECTORY COMMAND [ARGUMENT...]. Ctrl-C leaves the container running; the next
start takes it over with everything that it wrote meanwhile (as much as its pipe can contain). When it exits, so does
this program, with its exit status.
"""

import sys
from pathlib import Path

import anyio

from moorage import Exit, errors, open_executor

ID = "worker-1"


def make_spec(root: Path, arguments: list[str]) -> dict[str, object]:
    """A container that sees this machine's programs, read-only."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64"):
        if not (root / name).is_symlink():
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
            "cgroupsPath": f"/moorage-example-{ID}",
        },
    }


class Output:
    """A byte sink: write and close, plain or async."""

    def __init__(self, label: str) -> None:
        self.label = label

    async def write(self, data: bytes) -> None:
        print(f"[{self.label}] {data.decode(errors='replace')}", end="", flush=True)

    async def close(self) -> None:
        print(f"[{self.label}] end of output", flush=True)


class ExitWaiter:
    """The exit handler: called exactly once for each run that exited."""

    def __init__(self) -> None:
        self.exited = anyio.Event()
        self.code: int | None = None

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        self.code = exit.code
        self.exited.set()


async def main(address: str, directory: str, arguments: list[str]) -> int:
    waiter = ExitWaiter()
    async with open_executor(address, directory, waiter, namespace="moorage-example") as executor:
        if await executor.restore(ID, Output("stdout"), Output("stderr")):
            print("found it running", flush=True)
        else:
            if (last := executor.last_exit(ID)) is not None:
                print(f"it exited with {last.code} while this program was not running", flush=True)
            spec = make_spec(Path(directory, "root"), arguments)
            await executor.create(ID, spec, Output("stdout"), Output("stderr"))
            print("started it", flush=True)
        await waiter.exited.wait()
    return 1 if waiter.code is None else waiter.code


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: worker.py SOCKET STATE_DIRECTORY COMMAND [ARGUMENT...]")
    try:
        sys.exit(anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:]))
    except errors.MoorageError as error:
        sys.exit(f"worker.py: {error}")
    except KeyboardInterrupt:
        print("interrupted: a started container keeps running")
