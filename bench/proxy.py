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
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.proxy_process import Plugin, ProxyProcess, call

CALLS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("VolumeDriver.Get", "", {"Name": "a"}),
    ("VolumeDriver.Path", "", {"Name": "a"}),
    ("VolumeDriver.Mount", "", {"Name": "a", "ID": "1"}),
    ("VolumeDriver.Mount", ", the first of its id", {"Name": "a", "ID": ""}),
    ("VolumeDriver.Mount", ", a file system", {"Name": "mounted", "ID": "1"}),
    ("NetworkDriver.Join", "", {"NetworkID": "n"}),
)
"""Method, what is special, and the body; an empty ID stands for another one in each round, which is returned."""
PLUGINS, SIDE_BY_SIDE, IDLE_SECONDS, CHUNK = 30, 1000, 5.0, 20
_SETTLED = 0.05  # seconds after a call, when the proxy has nothing more to do for it
_PROXIED, _BESIDE = "proxied", "beside"


def measure(rounds: int, directory: Path, beside: Path | None = None) -> dict[str, Any]:
    """Run all rounds; seconds of each call by name, and what the proxy takes.

    ``beside`` is the source of another version, whose proxy gets the same calls in the same rounds.
    """
    plugins = [Plugin(directory, f"p{number:02d}") for number in range(PLUGINS)]
    plugins[0].start()
    try:
        with ExitStack() as running:
            running.enter_context(mounted("ramfs", plugins[0].directory / "mnt/mounted"))
            proxies = {_PROXIED: running.enter_context(started(directory, plugins))}
            if beside is not None:
                proxies[_BESIDE] = running.enter_context(started(directory, plugins, beside))
            direct = {"direct": str(plugins[0].directory / "plugin.sock")}
            calls = compare(rounds, direct | {name: each.path(plugins[0]) for name, each in proxies.items()})
            proxy = proxies[_PROXIED]
            return {
                "figures": calls,
                "cpu_seconds": compare_cpu(rounds, proxies, plugins[0]),
                "side_by_side_seconds": side_by_side(proxy.path(plugins[0])),
                "memory_bytes": proxy.status("VmRSS") * 1024,
                "idle_cpu_seconds": cpu_when_idle(proxy.pid),
            }
    finally:
        for each in plugins:
            each.kill()
            each.unmount_all()


@contextmanager
def started(directory: Path, plugins: list[Plugin], source: Path | None = None) -> Iterator[ProxyProcess]:
    """A proxy with all plugins published, for the length of the block."""
    proxy = ProxyProcess(directory) if source is None else ProxyProcess(directory, name=_BESIDE, source=source)
    proxy.state.rmdir()
    with mounted("tmpfs", proxy.state), proxy:
        proxy.send(*(each.table(proxy.published, "ready" if each.run else "starting") for each in plugins))
        yield proxy


def compare(rounds: int, paths: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of each call, by its name and the socket's; which socket comes first changes."""
    results: dict[str, list[float]] = {}
    for number in range(rounds):
        order = list(paths.items())
        for method, special, fields in CALLS:
            order = order[1:] + order[:1]
            for name, path in order:
                began = time.perf_counter()
                request(path, method, fields, number)
                results.setdefault(f"{method}{special}: {name}", []).append(time.perf_counter() - began)
                finish(path, fields, number)
    return results


def compare_cpu(rounds: int, proxies: dict[str, ProxyProcess], plugin: Plugin) -> dict[str, dict[str, float]]:
    """Seconds of processor time that each proxy takes for each call, with what it does after the answer.

    Without what it does for the Unmount of a first Mount.
    """
    chunks = max(rounds // CHUNK, 1)
    taken: dict[str, dict[str, float]] = {name: {} for name in proxies}
    for chunk in range(chunks):
        for method, special, fields in CALLS:
            for name, proxy in proxies.items():
                path, numbers = proxy.path(plugin), range(chunk * CHUNK, (chunk + 1) * CHUNK)
                time.sleep(_SETTLED)
                before = thread_seconds(proxy.pid)
                for number in numbers:
                    request(path, method, fields, number)
                time.sleep(_SETTLED)
                key, seconds = f"{method}{special}", (thread_seconds(proxy.pid) - before) / (CHUNK * chunks)
                taken[name][key] = taken[name].get(key, 0.0) + seconds
                for number in numbers:
                    finish(path, fields, number)
    return taken


def request(path: str, method: str, fields: dict[str, str], number: int) -> None:
    """One call."""
    named = {**fields, "ID": f"first{number}"} if fields.get("ID") == "" else fields
    assert call(path, method, None, **named)[0] == 200


def finish(path: str, fields: dict[str, str], number: int) -> None:
    """Return what only the first Mount of its id has made."""
    if fields.get("ID") == "":
        request(path, "VolumeDriver.Unmount", fields, number)


def cpu_when_idle(pid: int) -> float:
    """CPU time that a proxy takes without a call."""
    time.sleep(1)
    idle = proxy_seconds(pid)
    time.sleep(IDLE_SECONDS)
    return proxy_seconds(pid) - idle


@contextmanager
def mounted(kind: str, path: Path) -> Iterator[None]:
    """A file system in memory at a path, for the length of the block."""
    path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", kind, "-o", "mode=0700", "moorage-bench", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def proxy_seconds(pid: int) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def thread_seconds(pid: int) -> float:
    """CPU time of the threads that a process has now, to the microsecond."""
    return sum(int((each / "schedstat").read_text().split()[0]) / 1e9 for each in Path(f"/proc/{pid}/task").iterdir())


def side_by_side(path: str) -> float:
    """Seconds for many calls at the same time."""
    with ThreadPoolExecutor(100) as threads:
        began = time.perf_counter()
        done = list(threads.map(lambda _: call(path, "VolumeDriver.Get", Name="a")[0], range(SIDE_BY_SIDE)))
    assert set(done) == {200}
    return time.perf_counter() - began


def table(result: dict[str, Any]) -> str:
    """Medians in milliseconds, what each proxy adds, and its processor time."""
    medians = {name: statistics.median(values) * 1000 for name, values in result["figures"].items()}
    lines = [f"{'milliseconds, medians':48}" + "".join(f"{each:>8} " for each in ("direct", "through", "added", "CPU"))]
    for name, seconds in result["cpu_seconds"].items():
        for method, special, _ in CALLS:
            key = f"{method}{special}"
            direct, through = medians[f"{key}: direct"], medians[f"{key}: {name}"]
            lines.append(
                f"{key:33} {name:8} {direct:8.2f} {through:8.2f} {through - direct:8.2f} {seconds[key] * 1000:8.2f}"
            )
    return "\n".join(
        [
            *lines,
            f"{SIDE_BY_SIDE} calls, 100 at a time: {result['side_by_side_seconds']:.2f} s",
            f"memory with {PLUGINS} plugins published: {result['memory_bytes'] / 2**20:.1f} MiB",
            f"CPU in {IDLE_SECONDS:g} idle seconds: {result['idle_cpu_seconds'] * 1000:.0f} ms",
        ]
    )


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--beside", type=Path, help="src of another checkout, whose proxy is measured, too")
    parser.add_argument("--output", type=Path, help="directory for the result as JSON")
    arguments = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="moorage-bench-", dir="/var/tmp") as scratch:
        result = measure(arguments.rounds, Path(scratch), arguments.beside)
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
