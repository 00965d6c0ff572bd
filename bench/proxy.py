"""What a call costs through the plugin proxy, beside the same call to the plugin itself; and what the proxy takes.

The plugin is the tests' one in Python, the consumer a client that makes a connection for each call, as podman and
dockerd do. Calls are interleaved (direct, proxied, direct, ...), because the machine's mood changes over minutes. The
state directory is in memory, as a run-time directory is. Called by scripts/bench.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.proxy_process import Plugin, ProxyProcess, call

CALLS: tuple[tuple[str, dict[str, str]], ...] = (
    ("VolumeDriver.Get", {"Name": "a"}),
    ("VolumeDriver.Path", {"Name": "a"}),
    ("VolumeDriver.Mount", {"Name": "a", "ID": "1"}),
    ("NetworkDriver.Join", {"NetworkID": "n"}),
)
PLUGINS, SIDE_BY_SIDE, IDLE_SECONDS = 30, 1000, 5.0


def measure(rounds: int, directory: Path) -> dict[str, Any]:
    """Run all rounds; seconds of each call by name, and what the proxy takes."""
    plugins = [Plugin(directory, f"p{number:02d}") for number in range(PLUGINS)]
    plugins[0].start()
    try:
        with in_memory(directory / "proxy"), ProxyProcess(directory) as proxy:
            proxy.send(*(each.table(proxy.published, "ready" if each.run else "starting") for each in plugins))
            paths = {"direct": str(plugins[0].directory / "plugin.sock"), "proxied": proxy.path(plugins[0])}
            results: dict[str, list[float]] = {}
            busy = proxy_seconds(proxy.pid)
            for _ in range(rounds):
                for method, fields in CALLS:
                    for name, path in paths.items():
                        began = time.perf_counter()
                        assert call(path, method, None, **fields)[0] == 200
                        results.setdefault(f"{method}: {name}", []).append(time.perf_counter() - began)
            busy = (proxy_seconds(proxy.pid) - busy) / (rounds * len(CALLS))
            many = side_by_side(paths["proxied"])
            memory = proxy.status("VmRSS") * 1024
            time.sleep(1)
            idle = proxy_seconds(proxy.pid)
            time.sleep(IDLE_SECONDS)
            return {
                "figures": results,
                "proxy_cpu_seconds_per_call": busy,
                "memory_bytes": memory,
                "idle_cpu_seconds": proxy_seconds(proxy.pid) - idle,
                "side_by_side_seconds": many,
            }
    finally:
        for each in plugins:
            each.kill()
            each.unmount_all()


@contextmanager
def in_memory(path: Path) -> Iterator[None]:
    """A file system in memory at a path, for the length of the block."""
    path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "moorage-bench", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def proxy_seconds(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def side_by_side(path: str) -> float:
    """Seconds for many calls at the same time."""
    with ThreadPoolExecutor(100) as threads:
        began = time.perf_counter()
        done = list(threads.map(lambda _: call(path, "VolumeDriver.Get", Name="a")[0], range(SIDE_BY_SIDE)))
    assert set(done) == {200}
    return time.perf_counter() - began


def table(result: dict[str, Any]) -> str:
    """Medians in milliseconds, and what the proxy adds."""
    lines = [f"{'':24} {'direct':>8} {'proxied':>8} {'added':>8}   milliseconds, medians"]
    medians = {name: statistics.median(values) * 1000 for name, values in result["figures"].items()}
    for method, _ in CALLS:
        direct, proxied = medians[f"{method}: direct"], medians[f"{method}: proxied"]
        lines.append(f"{method:24} {direct:8.2f} {proxied:8.2f} {proxied - direct:8.2f}")
    return "\n".join(
        [
            *lines,
            f"CPU of the proxy for a call: {result['proxy_cpu_seconds_per_call'] * 1000:.2f} ms",
            f"{SIDE_BY_SIDE} calls, 100 at a time: {result['side_by_side_seconds']:.2f} s",
            f"memory with {PLUGINS} plugins published: {result['memory_bytes'] / 2**20:.1f} MiB",
            f"CPU in {IDLE_SECONDS:g} idle seconds: {result['idle_cpu_seconds'] * 1000:.0f} ms",
        ]
    )


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--output", type=Path, help="directory for the result as JSON")
    arguments = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="moorage-bench-", dir="/var/tmp") as scratch:
        result = measure(arguments.rounds, Path(scratch))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(table(result))
    print(f"load before: {load[0]:.2f}, at the end: {os.getloadavg()[0]:.2f}")
    if arguments.output is not None:
        now = datetime.now(UTC)
        result |= {
            "at": now.isoformat(timespec="seconds"),
            "command": f"scripts/bench proxy --rounds {arguments.rounds}",
            "commit": commit.stdout.strip(),
            "cores": os.cpu_count(),
            "load": {"before": load, "after": os.getloadavg()},
            "kernel": platform.release(),
            "python": sys.version.split()[0],
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / f"{now:%Y-%m-%d}-proxy.json").write_text(json.dumps(result, indent=1) + "\n")
