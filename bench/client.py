"""Calls of the containerd client beside grpc.aio and ctr, all to one containerd, in turns in one run.

``scripts/bench client [SECONDS]``: version requests a second by one task and by 200 tasks, and of ``ctr version``, a
process each. The messages are the same for both libraries.
"""

import importlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from moorage.containerd import connect, supervise
from moorage.containerd._proto import empty_pb2, moorage_version_pb2

_METHOD = "/containerd.services.version.v1.Version/Version"
_TASKS = 200
_ROUNDS = 3


async def rate(call: Callable[[], Awaitable[object]], tasks: int, seconds: float) -> float:
    """Calls a second, by so many tasks side by side."""
    count, ends_at, began = 0, time.monotonic() + seconds, time.monotonic()

    async def repeat() -> None:
        nonlocal count
        while time.monotonic() < ends_at:
            await call()
            count += 1

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(repeat)
    return count / (time.monotonic() - began)


def rate_of_ctr(address: str, seconds: float) -> float:
    """Runs of ``ctr version`` a second, one after another."""
    count, began = 0, time.monotonic()
    while time.monotonic() < began + seconds:
        subprocess.run(["ctr", "-a", address, "version"], check=True, capture_output=True)
        count += 1
    return count / (time.monotonic() - began)


async def measure(address: str, seconds: float) -> dict[str, list[float]]:
    """Every round of every line."""
    grpc_aio: Any = importlib.import_module("grpc.aio")
    found: dict[str, list[float]] = {}
    async with connect(address, "bench") as client, grpc_aio.insecure_channel(f"unix://{address}") as channel:
        other: Any = channel.unary_unary(
            _METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=moorage_version_pb2.VersionResponse.FromString,
        )
        for _ in range(_ROUNDS):
            for tasks in (1, _TASKS):
                for name, call in (("moorage", client.version), ("grpc.aio", lambda: other(empty_pb2.Empty()))):
                    found.setdefault(f"{name}, {tasks} tasks", []).append(await rate(call, tasks, seconds))
            found.setdefault("ctr, 1 process", []).append(await anyio.to_thread.run_sync(rate_of_ctr, address, seconds))
    return found


async def run(seconds: float) -> None:
    """Measure on a containerd of its own, and print a table."""
    with tempfile.TemporaryDirectory() as directory:
        async with supervise(Path(directory, "root"), Path(directory, "state")) as containerd:
            found = await measure(containerd.address, seconds)
            await containerd.stop()
    print("calls of Version a second, each round:")
    for name, values in found.items():
        print(f"{name:20} {'  '.join(f'{value:8.0f}' for value in values)}")


def main() -> None:
    """``scripts/bench client [SECONDS]``."""
    words = [word for word in sys.argv[1:] if word.replace(".", "").isdecimal()]
    anyio.run(run, float(words[0]) if words else 3.0)
