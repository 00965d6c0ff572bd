"""What a fuzz target is, and what one execution may not do: fail unexpectedly, take long, or take much memory."""

import gc
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from fuzz.mutation import mutate_bytes
from moorage import errors
from support.limits import limit

SECONDS = limit(5.0)
"""Longest time for one input. A machine that is busy slows down everything, so it is processor time that counts."""

MEMORY_BYTES = 300 * 1024 * 1024
"""Most memory for one input, beyond what the process had before."""

_RESET_BYTES = 16 * 1024 * 1024  # growth of the peak after which it is measured again

Mutate = Callable[[bytes, Random], bytes]


class CrashError(Exception):
    """An execution took too long or too much memory, or a promise about its result is broken."""


@dataclass(frozen=True)
class Target:
    """One reader of foreign input."""

    name: str
    what: str
    """What is read, for the list of targets."""
    run: Callable[[bytes], object]
    """One execution. What it raises besides ``kinds`` is a crash."""
    seeds: tuple[bytes, ...]
    """Valid inputs to begin with."""
    mutate: Mutate = mutate_bytes
    """Changes an input in the terms of its format."""
    kinds: tuple[type[Exception], ...] = (errors.Invalid,)
    """The documented failures of the reader."""
    executions: int = 1500
    """How many are part of the tests."""
    dictionary: tuple[bytes, ...] = field(default=())
    """Words of the format."""


def peak_bytes() -> int:
    """The most memory that this process had since ``reset_peak``."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Measure the peak from now on. Source: proc(5), clear_refs."""
    Path("/proc/self/clear_refs").write_text("5")


class Limits:
    """Measures one execution after another."""

    def __init__(self) -> None:
        reset_peak()
        self._before = peak_bytes()

    def execute(self, target: Target, data: bytes) -> None:
        """Run one input. Raises: CrashError, and whatever is not one of the target's ``kinds``."""
        began = time.process_time()
        try:
            target.run(data)
        except target.kinds:
            pass
        seconds, peak = time.process_time() - began, peak_bytes()
        if seconds > SECONDS:
            raise CrashError(f"{target.name}: {seconds:.1f} s of processor time for {len(data)} bytes")
        grown = peak - self._before
        if grown > _RESET_BYTES:
            gc.collect()
            reset_peak()
            self._before = peak_bytes()
        if grown > MEMORY_BYTES:
            raise CrashError(f"{target.name}: {grown >> 20} MB of memory for {len(data)} bytes")


def execute_many(target: Target, count: int, seed: int) -> int:
    """Run the seeds, and inputs made of them until there were ``count``; how many there were.

    Raises: as ``Limits.execute``, with a note that has the input.
    """
    random, limits = Random(seed), Limits()
    for index in range(count):
        data = target.seeds[index] if index < len(target.seeds) else generate(target, random, target.seeds)
        try:
            limits.execute(target, data)
        except Exception as error:
            error.add_note(f"target {target.name}, seed {seed}, execution {index}, input {data!r}")
            raise
    return count


def generate(target: Target, random: Random, seeds: Sequence[bytes]) -> bytes:
    """An input made of one of the seeds."""
    data = random.choice(seeds)
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        data = target.mutate(data, random)
        if target.dictionary and random.random() < 0.3:
            data = mutate_bytes(data, random, target.dictionary)
    return data
