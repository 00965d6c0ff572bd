"""Measures, prints the table of the numbers to reach, writes every single value to a file. Called by scripts/bench."""

import argparse
import os
import secrets
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio
from bench import client, compare, executor, growth, health, logs, machine, output, packages, page, proxy, runtimes
from bench.engine import Extent, measure
from bench.report import LINES, growth_table, judge, table

QUICK = Extent(rounds=1, plugins=3, idle_seconds=1, megabytes=4, package_megabytes=2, growth=(1, 3))


def main() -> None:
    """One run, with the arguments of the command line."""
    words = sys.argv[1:]
    parts = {
        "client": client,
        "compare": compare,
        "executor": executor,
        "health": health,
        "logs": logs,
        "output": output,
        "page": page,
        "proxy": proxy,
        "runtimes": runtimes,
    }
    for name, part in parts.items():
        if name in words:
            sys.argv.remove(name)
            part.main()
            return
    options = read_options(words)
    extent = extent_of(options)
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    began_at, load = datetime.now(UTC), os.getloadavg()
    results = measure_parts(options.what, extent)
    print(f"\n{table(judge(LINES, results), extent.plugins)}\n\n{growth_table(results)}\n")
    print(f"load before: {load[0]:.2f}, at the end: {os.getloadavg()[0]:.2f}; seed {extent.seed}")
    if options.output is not None:
        result = {
            "at": began_at.isoformat(timespec="seconds"),
            "commit": machine.commit(),
            "command": f"scripts/bench {shlex.join(arguments_of(options, extent))}",
            "seed": extent.seed,
            "plugins": extent.plugins,
            "machine": machine.describe(),
            "load": {"before": load, "after": os.getloadavg()},
            "figures": results,
        }
        print(f"written to {machine.write(options.output, began_at, result)}")


def measure_parts(what: str, extent: Extent) -> dict[str, list[float]]:
    """Everything, or one part of it."""
    results: dict[str, list[float]] = {}
    if what in ("all", "engine"):
        results |= measure(extent, print)
    if what in ("all", "packages"):
        results |= packages.measure(extent.long_rounds, extent.package_megabytes, print, seed=extent.seed)
    if what in ("all", "growth"):
        results |= growth.measure(extent.growth, extent.idle_seconds, print)
    if what == "all":
        print(f"{extent.rounds} rounds of runc and crun")
        results |= runtimes.measure(extent.rounds, extent.plugins, extent.seed)
        print(f"{extent.rounds} rounds of the executor alone")
        uvloop = {"use_uvloop": True}
        results |= anyio.run(executor.measure, extent.rounds, backend_options=uvloop)["figures"]
    return results


def read_options(words: list[str]) -> argparse.Namespace:
    """The command line, in any order of its words."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure Moorage against what people have.")
    parser.add_argument(
        "what", nargs="?", choices=("executor", "logs", "output", "packages", "growth", "engine", "all"), default="all"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--plugins", type=int)
    parser.add_argument("--idle-seconds", type=float)
    parser.add_argument("--seed", type=int, help="of the order within a round")
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that it works; no figures to trust")
    parser.add_argument("--output", type=Path, help="directory for the result as JSON")
    return parser.parse_args(words)


def extent_of(options: argparse.Namespace) -> Extent:
    """How much to measure: the defaults, or few for ``--quick``, and what was given on top."""
    usual = QUICK if options.quick else Extent()
    return Extent(
        rounds=options.rounds or usual.rounds,
        plugins=options.plugins or usual.plugins,
        idle_seconds=usual.idle_seconds if options.idle_seconds is None else options.idle_seconds,
        megabytes=usual.megabytes,
        package_megabytes=usual.package_megabytes,
        growth=usual.growth,
        seed=secrets.randbelow(10**6) if options.seed is None else options.seed,
    )


def arguments_of(options: argparse.Namespace, extent: Extent) -> list[str]:
    """The command that measures this again."""
    words = [options.what, "--rounds", str(extent.rounds), "--plugins", str(extent.plugins)]
    words += ["--idle-seconds", f"{extent.idle_seconds:g}", "--seed", str(extent.seed)]
    return [*words, *(["--quick"] if options.quick else [])]


if __name__ == "__main__":
    main()
