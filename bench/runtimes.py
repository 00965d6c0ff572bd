"""runc against crun under one engine each: enable, crash, start and stop of all plugins, disable.

Rounds are interleaved in a random order, so that both have the same other work on the machine. Where control groups are
hybrid, which crun refuses, all of it runs in a mount namespace with those of version 1. Called by scripts/bench.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from bench import machine
from bench.targets import LIST_SECONDS, Moorage, accepts, until

from support.runtimes import VERSION_1_GROUPS, refuses_hybrid_groups

__all__ = ("main", "measure")

RUNTIMES = ("runc", "crun")
ONE = "one"


class Side(Moorage):
    """An engine whose plugins are run by one runtime."""

    def __init__(self, base: Path, runtime: str, plugins: int) -> None:
        base.mkdir()
        super().__init__(base)
        self.runtime = runtime
        self.serving = ("--runtime", runtime)
        self.names = [f"p{number:02}" for number in range(plugins)]
        self.results: dict[str, list[float]] = {}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.results.setdefault(what, []).append(time.perf_counter() - began)

    def begin(self) -> None:
        self.start()
        for name in (ONE, *self.names):
            self.create(name)

    def one(self) -> None:
        """A plugin is enabled, crashes and is disabled."""
        with self.timed("enable"):
            self.enable(ONE)
        socket, pid = self.socket_of(ONE), self.plugin_pid(ONE)
        with self.timed("crash, until it accepts again"):
            os.kill(pid, 9)
            until(lambda: not accepts(socket), "it is gone")
            until(lambda: accepts(socket), "it accepts again")
        until(lambda: self.state(ONE) == "ready", "it is ready again")
        with self.timed("disable"):
            self.disable(ONE)

    def enable_all(self) -> None:
        for name in self.names:
            self.enable(name)
        self.down()

    def all(self) -> None:
        """The engine starts with all plugins enabled, and all are stopped."""
        with self.timed(f"start of {len(self.names)}"):
            self.start(wait=False)
            until(lambda: self.all_ready(len(self.names)), "all are ready", interval=LIST_SECONDS)
        with self.timed(f"stop of {len(self.names)}"):
            self.down()


def measure(rounds: int, plugins: int, seed: int) -> dict[str, list[float]]:
    """Seconds by runtime and what was measured, from a process in a mount namespace that suits both runtimes."""
    with TemporaryDirectory(prefix="moorage-bench-") as scratch:
        words = ["--rounds", f"{rounds}", "--plugins", f"{plugins}", "--seed", f"{seed}", "--output", scratch]
        subprocess.run([*_command(), *words], check=True)
        (written,) = Path(scratch).iterdir()
        values_by_name: dict[str, list[float]] = json.loads(written.read_text())["figures"]
    return {name.removesuffix(f" of {plugins}"): values for name, values in values_by_name.items()}


def _command() -> list[str]:
    namespace = ["unshare", "--mount", "--propagation", "private", str(VERSION_1_GROUPS)]
    return [*(namespace if refuses_hybrid_groups() else ()), sys.executable, "-m", "bench", "runtimes"]


def main() -> None:
    """One run, with the arguments of the command line."""
    if refuses_hybrid_groups():
        command = _command()
        os.execvp(command[0], [*command, *sys.argv[1:]])
    options = _options()
    began_at, load = datetime.now(UTC), os.getloadavg()
    sides = _measure(options.rounds, options.plugins, options.seed)
    for side in sides:
        print(f"{side.runtime}: {', '.join(_medians(side))}")
    runc, crun = sides
    for what, values in runc.results.items():
        ratio = statistics.median(crun.results[what]) / statistics.median(values)
        print(f"{what}: crun takes {ratio:.2f} of the time of runc")
    print(f"load before: {load[0]:.2f}, at the end: {os.getloadavg()[0]:.2f}; {options.rounds} rounds")
    if options.output is not None:
        single = {f"{side.runtime}: {what}": each for side in sides for what, each in side.results.items()}
        result = {"commit": machine.commit(), "machine": machine.describe(), "figures": single}
        print(f"written to {machine.write(options.output, began_at, result)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench runtimes", description="Measure runc against crun.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--plugins", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def _measure(rounds: int, plugins: int, seed: int) -> list[Side]:
    order, directory = random.Random(seed), Path(mkdtemp(prefix="moorage-bench-", dir="/var/tmp"))
    try:
        with ExitStack() as stack:
            sides = [Side(directory / name, name, plugins) for name in RUNTIMES]
            for side in sides:
                stack.callback(side.down)
                side.begin()
            _interleave(order, rounds, [side.one for side in sides])
            for side in sides:
                side.enable_all()
            _interleave(order, max(rounds // 4, 1), [side.all for side in sides])
            return sides
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _interleave(order: random.Random, rounds: int, parts: list[Callable[[], None]]) -> None:
    for _ in range(rounds):
        order.shuffle(parts)
        for part in parts:
            part()


def _medians(side: Side) -> Iterator[str]:
    for what, values in side.results.items():
        yield f"{what} {1000 * statistics.median(values):.0f} ms"
