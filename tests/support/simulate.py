"""Plays many seeded schedules on all processors, or one of them as text."""

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import Pool
from pathlib import Path

import pytest

from support import simulator
from support.engine_simulator import Simulation, play_many
from support.engine_world import patch
from support.virtual_time import run_in_virtual_time

_CHUNK = 5000
_ENGINE_CHUNK = 50


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, help="how many (default: a million)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, help="play this one alone and say what happens")
    parser.add_argument("--engine", action="store_true", help="lives of whole engines (default there: 20,000)")
    return parser.parse_args(arguments)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _play_one(seed: int) -> int:
    try:
        simulator.play(seed, _write)
    except simulator.Violation as violation:
        _write(f"violation: {violation}")
        return 1
    _write("every promise holds")
    return 0


def _play_engine_chunk(seeds: range) -> list[tuple[int, str]]:
    logging.disable(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patches, tempfile.TemporaryDirectory(prefix="moorage-simulate-") as base:
        patch(patches)
        return play_many(seeds, Path(base))


def _play_engines(options: argparse.Namespace) -> int:
    if options.seed is not None:
        with pytest.MonkeyPatch.context() as patches, tempfile.TemporaryDirectory(prefix="moorage-simulate-") as base:
            patch(patches)
            run_in_virtual_time(Simulation(options.seed, Path(base), _write).play)
        _write("every promise holds")
        return 0
    started = time.monotonic()
    end = options.first + (options.schedules or 20_000)
    chunks = [range(first, min(first + _ENGINE_CHUNK, end)) for first in range(options.first, end, _ENGINE_CHUNK)]
    failures: list[tuple[int, str]] = []
    with Pool(os.cpu_count()) as pool:
        for failed in pool.imap_unordered(_play_engine_chunk, chunks):
            failures += failed
    for seed, reason in sorted(failures)[:10]:
        _write(f"seed {seed}: {reason}\n    again, in words: scripts/simulate --engine --seed {seed}")
    _write(f"{end - options.first} lives of engines, {len(failures)} violations, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.engine:
        return _play_engines(options)
    if options.seed is not None:
        return _play_one(options.seed)
    options.schedules = options.schedules or 1_000_000
    started = time.monotonic()
    end = options.first + options.schedules
    chunks = [range(first, min(first + _CHUNK, end)) for first in range(options.first, end, _CHUNK)]
    happenings, failures = 0, []
    with Pool(os.cpu_count()) as pool:
        for some, failed in pool.imap_unordered(simulator.play_many, chunks):
            happenings += some
            failures += failed
    for seed, reason in sorted(failures)[:10]:
        _write(f"seed {seed}: {reason}\n    again, in words: scripts/simulate --seed {seed}")
    _write(
        f"{options.schedules} schedules, {happenings} happenings, {len(failures)} violations, "
        f"{time.monotonic() - started:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
