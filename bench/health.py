"""What a health check costs the engine: processor time of one check by call, by connection and by a command.

The plugins are the tests' actors, checked every second, which is the shortest interval; what the engine takes without
checks is subtracted. How many checks were made is read from the times of their results, for each plugin. The processor
time of the plugins, and of the shim and runc for a command, is not in it. Called by scripts/bench.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine
from bench.proxy import proxy_seconds
from bench.targets import Moorage

from support.engines import EngineProcess, config

CHECKS: dict[str, dict[str, Any]] = {
    "call": {"Kind": "call", "Method": "health"},
    "connect": {"Kind": "connect"},
    "command": {"Kind": "command", "Command": ["/actor", "end=0"]},
}
INTERVAL = 1.0
SETTLE = 5.0  # seconds until the engine has done what follows the starts
RESULTS = 5  # that an engine shows


def measure(plugins: int, seconds: float, directory: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run each kind in turn; milliseconds of one check by kind, and what they are made of."""
    made = Moorage(directory)
    made.start()
    try:
        names = [f"p{number:03d}" for number in range(plugins)]
        for name in names:
            made.create(name, config(description=name))
            made.enable(name)
        say(f"{plugins} plugins are ready")
        time.sleep(SETTLE)
        idle = busy_seconds(made, seconds)
        results: dict[str, Any] = {"idle_cpu_seconds": idle, "seconds": seconds, "plugins": plugins, "figures": {}}
        for kind, check in CHECKS.items():
            for name in names:
                made.request_own("PUT", name, "policy", {"health": {"Checks": [check], "Interval": INTERVAL}})
            made.wait_until(lambda: all(map(has_results, map(made.more, names))), "checks of each plugin", 60 + seconds)
            busy = busy_seconds(made, seconds)
            rate = sum(checks_per_second(made.more(name)) for name in names)
            results["figures"][kind] = {
                "cpu_seconds": busy,
                "checks_per_second": rate,
                "milliseconds_per_check": (busy - idle) / (rate * seconds) * 1000,
            }
        for name in names:
            made.remove(name, force=True)
        return results
    finally:
        made.close()


def busy_seconds(made: EngineProcess, seconds: float) -> float:
    """Processor time of the engine in so many seconds."""
    assert made.child is not None
    before = proxy_seconds(made.child.pid)  # of the whole process: its worker threads come and go
    time.sleep(seconds)
    return proxy_seconds(made.child.pid) - before


def has_results(more: dict[str, Any]) -> bool:
    """Whether the results that are shown are all of the present checks: they have passed."""
    health = more["Health"] or {"Log": []}
    return len(health["Log"]) == RESULTS and not any(each["ExitCode"] for each in health["Log"])


def checks_per_second(more: dict[str, Any]) -> float:
    """How often a plugin was checked, by the times of its last results."""
    began = [datetime.fromisoformat(each["Start"]) for each in more["Health"]["Log"]]
    return (len(began) - 1) / (began[-1] - began[0]).total_seconds()


def table(result: dict[str, Any]) -> str:
    """Milliseconds for a check, and what 100 plugins take that are checked every 10 seconds."""
    lines = [f"{'check':10} {'ms of processor time':>22} {'100 plugins, every 10 s':>26}"]
    for kind, each in result["figures"].items():
        cost = each["milliseconds_per_check"]
        lines.append(f"{kind:10} {cost:22.2f} {cost:24.2f} %")  # 10 checks a second, of 1000 ms: the same number
    return "\n".join([*lines, f"without checks: {result['idle_cpu_seconds'] / result['seconds'] * 100:.2f} %"])


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(prog="scripts/bench health", description=__doc__)
    parser.add_argument("--plugins", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--output", type=Path, help="directory for the result as JSON")
    arguments = parser.parse_args()
    began_at, load = datetime.now(UTC), os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="moorage-bench-", dir="/var/tmp") as scratch:
        result = measure(arguments.plugins, arguments.seconds, Path(scratch), print)
    command = f"scripts/bench health --plugins {arguments.plugins} --seconds {arguments.seconds:g}"
    print(table(result))
    print(f"load before: {load[0]:.2f}, at the end: {os.getloadavg()[0]:.2f}")
    if arguments.output is not None:
        facts: dict[str, Any] = {
            "at": began_at.isoformat(timespec="seconds"),
            "command": command,
            "commit": machine.commit(),
        }
        facts |= {"machine": machine.describe(), "load": {"before": load, "after": os.getloadavg()}}
        print(f"written to {machine.write(arguments.output, began_at, facts | result, 'health')}")
