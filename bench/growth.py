"""How the cost of an engine grows with the number of its plugins: a cold start of each number, and what it uses then.

One engine gets more and more plugins. With each number it is stopped with everything and started again. Figures bear
the number: "growth: start, 30".
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp

from bench import machine
from bench.targets import LIST_SECONDS, Moorage, accepts, until

__all__ = ("COUNTS", "measure")

COUNTS = (1, 10, 30, 100, 300)
_SETTLING = 5.0  # seconds that a start has to finish its work in the background


def measure(counts: Sequence[int], idle_seconds: float, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds, MB, percent and numbers of descriptors, by name."""
    directory = Path(mkdtemp(prefix="moorage-bench-", dir="/var/tmp"))
    moorage = Moorage(directory)
    results: dict[str, list[float]] = {}
    try:
        moorage.start()
        for count in sorted(counts):
            say(f"cold start of {count} plugins")
            _add(moorage, count)
            moorage.down()
            for name, value in _start(moorage, count, idle_seconds).items():
                results[f"growth: {name}, {count}"] = [value]
        say(f"{max(counts)} plugins in one shim")
        moorage.down()
        moorage.serving = ("--shim", "shared")
        for name, value in _start(moorage, max(counts), idle_seconds).items():
            results[f"growth, one shim: {name}, {max(counts)}"] = [value]
        return results
    finally:
        moorage.close()
        shutil.rmtree(directory, ignore_errors=True)


def _add(moorage: Moorage, count: int) -> None:
    """Create and enable plugins until there are so many."""
    for number in range(len(moorage.plugins()), count):
        moorage.create(f"p{number:03}")
        moorage.enable(f"p{number:03}")


def _start(moorage: Moorage, count: int, idle_seconds: float) -> dict[str, float]:
    """Start the engine with so many enabled plugins, and observe it while nothing is requested."""
    began = time.perf_counter()
    moorage.start(wait=False)
    until(moorage.answers, "the API answers")
    measured = {"API": time.perf_counter() - began}
    for listens in [moorage.exec_root / "p" / each["Id"][:12] / "s/plugin.sock" for each in moorage.plugins()]:
        until(lambda listens=listens: accepts(listens), "a plugin listens")  # type: ignore[misc]
    measured["start"] = time.perf_counter() - began
    until(lambda: moorage.all_ready(count), "all are shown ready", interval=LIST_SECONDS)
    time.sleep(min(idle_seconds, _SETTLING))
    pids = {"engine": moorage.pid, "containerd": moorage.containerd_pid()}
    before, watched = {name: machine.cpu_seconds(pid) for name, pid in pids.items()}, time.perf_counter()
    time.sleep(idle_seconds)
    passed = time.perf_counter() - watched
    for name, pid in pids.items():
        measured[f"{name} idle CPU"] = 100 * (machine.cpu_seconds(pid) - before[name]) / passed
        measured[f"{name} PSS"] = machine.pss_mb([pid])
        measured[f"{name} descriptors"] = float(len(os.listdir(f"/proc/{pid}/fd")))
    measured["all PSS"] = machine.pss_mb([*pids.values(), *moorage.shims()])
    return measured
