"""Plays many seeded schedules on all processors, or one of them in words."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pool

from support import simulator

_CHUNK = 5000


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1_000_000, help="how many (default: a million)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed (default: 0)")
    parser.add_argument("--seed", type=int, help="play this one alone and say what happens")
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


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.seed is not None:
        return _play_one(options.seed)
    begun = time.monotonic()
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
        f"{time.monotonic() - begun:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
