"""Times and memory of the executor against `ctr run -d` and bare runc, all in one run on one containerd.

Rounds are interleaved (moorage, ctr, runc, moorage, ...), because the load of the machine changes over minutes; medians
and their ratios are what counts. Called by scripts/bench.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from moorage import Exit, open_executor
from moorage.containerd.supervisor import supervise
from support import leftovers

NAMESPACE = "moorage-bench"
CGROUP_PARENT = f"moorage-bench-executor-{os.getpid()}"
PROGRAM = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


class Sink:
    """Takes output and forgets it."""

    async def write(self, data: bytes) -> None: ...

    async def close(self) -> None: ...


class Clock:
    """Notes when the handler was called."""

    def __init__(self) -> None:
        self.called = anyio.Event()
        self.at = 0.0

    async def handle_exit_event(self, id: str, exit: Exit) -> None:
        self.at = time.perf_counter()
        self.called.set()


def make_root(directory: Path) -> Path:
    """A root file system of one static program that only waits."""
    root = directory / "rootfs"
    root.mkdir()
    source = directory / "wait.c"
    source.write_text(PROGRAM)
    subprocess.run(["cc", "-static", "-O2", "-o", str(root / "wait"), str(source)], check=True)
    return root


def make_spec(root: Path, group: str) -> dict[str, Any]:
    """The least that runc runs: the same for all three."""
    return {
        "ociVersion": "1.0.2",
        "process": {"args": ["/wait"], "cwd": "/", "env": ["PATH=/"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": str(root)},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [{"type": each} for each in ("pid", "mount", "ipc", "uts", "network")],
            "cgroupsPath": f"/{CGROUP_PARENT}/{group}",
        },
    }


class Bench:
    """One run: every figure is a list of seconds, one a round."""

    def __init__(self, directory: Path, address: str, executor: Any, clock: Clock) -> None:
        self.directory = directory
        self.address = address
        self.executor = executor
        self.clock = clock
        self.root = make_root(directory)
        self.results: dict[str, list[float]] = {}

    def note(self, name: str, seconds: float) -> None:
        self.results.setdefault(name, []).append(seconds)

    async def moorage(self, round_number: int) -> None:
        id = f"moorage-{round_number}"
        began = time.perf_counter()
        await self.executor.create(id, make_spec(self.root, id), Sink(), Sink())
        self.note("moorage: create to started", time.perf_counter() - began)
        self.clock.called = anyio.Event()
        owned = self.executor._containers[id]  # the figure "exit known" is not part of any interface
        pid = owned.run.pid or await self._pid(owned)
        killed = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(20):
            while owned.run.phase.value in ("starting", "running"):
                await anyio.lowlevel.checkpoint()
            self.note("moorage: death to exit known", time.perf_counter() - killed)
            await self.clock.called.wait()
        self.note("moorage: death to handler called", self.clock.at - killed)

    async def _pid(self, owned: Any) -> int:
        while owned.run.pid is None:
            await anyio.lowlevel.checkpoint()
        return int(owned.run.pid)

    def ctr(self, round_number: int) -> None:
        id = f"ctr-{round_number}"
        spec = self.directory / "ctr.json"
        spec.write_text(json.dumps(make_spec(self.root, id)))
        ctr = ["ctr", "--address", self.address, "--namespace", NAMESPACE]
        self._timed("ctr run -d", [*ctr, "run", "-d", "--config", str(spec), id])
        self._quiet([*ctr, "task", "delete", "-f", id])
        self._quiet([*ctr, "container", "delete", id])

    def ctr_alone(self, _round_number: int) -> None:
        self._timed("ctr version (its own start)", ["ctr", "--address", self.address, "version"])

    def runc(self, round_number: int) -> None:
        id = f"runc-{round_number}"
        bundle = self.directory / id
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(make_spec(self.root, id)))
        state = ["runc", "--root", str(self.directory / "runc")]
        began = time.perf_counter()
        subprocess.run([*state, "create", "--bundle", str(bundle), id], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*state, "start", id], check=True)
        self.note("runc create + start", time.perf_counter() - began)
        self._quiet([*state, "delete", "--force", id])

    def _timed(self, name: str, command: list[str]) -> None:
        began = time.perf_counter()
        self._quiet(command)
        self.note(name, time.perf_counter() - began)

    def _quiet(self, command: list[str]) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def measure(rounds: int) -> dict[str, Any]:
    """Run all rounds; figures by name."""
    with tempfile.TemporaryDirectory(prefix="moorage-bench-", dir="/var/tmp") as scratch:
        directory = Path(scratch)
        async with supervise(directory / "root", directory / "state") as containerd:
            try:
                clock = Clock()
                async with open_executor(
                    containerd.address, directory / "exec", clock, namespace=NAMESPACE
                ) as executor:
                    bench = Bench(directory, containerd.address, executor, clock)
                    peers: list[Callable[[int], None]] = [bench.ctr, bench.ctr_alone, bench.runc]
                    for number in range(rounds):
                        await bench.moorage(number)
                        for peer in peers:
                            await anyio.to_thread.run_sync(peer, number)
                    return {
                        "figures": bench.results,
                        "memory_bytes": {"executor with its imports, resident": resident_bytes()},
                        "containerd": (await anyio.run_process(["containerd", "--version"])).stdout.decode().strip(),
                    }
            finally:
                _delete_tasks(containerd.address)  # of a round that failed
                await containerd.stop()
                leftovers.remove_cgroups(CGROUP_PARENT)


def _delete_tasks(address: str) -> None:
    """Kill and delete every task of the namespace (blocking)."""
    ctr = ["ctr", "--address", address, "--namespace", NAMESPACE, "task"]
    found = subprocess.run([*ctr, "list", "--quiet"], check=False, capture_output=True, text=True)
    for id in found.stdout.split():
        subprocess.run([*ctr, "delete", "--force", id], check=False, capture_output=True)


def table(results: dict[str, list[float]]) -> str:
    """Medians in milliseconds, and Moorage as a ratio to the peer that does the same."""
    medians = {name: statistics.median(values) * 1000 for name, values in results.items()}
    lines = [f"{'':36} {'median':>9} {'min':>8} {'max':>8}"]
    for name, values in results.items():
        low, high = min(values) * 1000, max(values) * 1000
        lines.append(f"{name:36} {medians[name]:6.1f} ms {low:5.1f} ms {high:5.1f} ms")
    ratio = medians["moorage: create to started"] / medians["ctr run -d"]
    lines.append(f"\ncreate to started, Moorage to `ctr run -d`: {ratio:.2f} (goal at most 0.85)")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="directory for the result as JSON")
    arguments = parser.parse_args()
    result = anyio.run(measure, arguments.rounds, backend_options={"use_uvloop": True})
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(table(result["figures"]))
    for name, size in result["memory_bytes"].items():
        print(f"{name}: {size / 2**20:.1f} MiB")
    if arguments.output is not None:
        now = datetime.now(UTC)
        result |= {
            "at": now.isoformat(timespec="seconds"),
            "command": f"scripts/bench executor --rounds {arguments.rounds}",
            "commit": commit.stdout.strip(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": sys.version.split()[0],
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / f"{now:%Y-%m-%d}-executor.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
