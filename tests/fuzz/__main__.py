"""``scripts/fuzz``: each target in a process of its own, guided by coverage where atheris is installed."""

import argparse
import importlib
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from hashlib import sha1
from pathlib import Path
from random import Random
from typing import Any

from fuzz.environment import DIRECTORY
from support.limits import limit

HOUR = 3600
HANG_SECONDS = int(limit(30))
RSS_MB = 2000
_STATS = re.compile(r"stat::(\w+):\s+(\d+)")
_COVERAGE = re.compile(r"cov: (\d+)")


def main() -> int:
    arguments = _parse()
    logging.getLogger().addHandler(logging.NullHandler())
    if arguments.child:
        return _fuzz_here(arguments.child, arguments.corpus, arguments.seconds)
    from fuzz.targets import TARGETS

    if arguments.list:
        for target in TARGETS.values():
            print(f"{target.name:15} {target.what}")
        return 0
    if unknown := [each for each in arguments.target if each not in TARGETS]:
        print(f"fuzz: there is no target {', '.join(unknown)}; scripts/fuzz --list shows all", file=sys.stderr)
        return 2
    if arguments.replay:
        TARGETS[arguments.target[0]].run(arguments.replay.read_bytes())
        print("fuzz: no exception")
        return 0
    if not _has_atheris():
        print("fuzz: atheris is not installed for this Python: random mutation, not guided by coverage")
    statuses = [_fuzz(name, arguments.corpus, arguments.seconds) for name in arguments.target or TARGETS]
    return 1 if any(statuses) else 0


def _parse() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser("scripts/fuzz", description="Fuzz the readers of foreign input.")
    parser.add_argument("target", nargs="*", help="targets; all where none is given")
    parser.add_argument("--seconds", type=int, default=HOUR, help="for each target (an hour)")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input, and show what it raises")
    parser.add_argument("--corpus", type=Path, default=cache / "moorage-fuzz", help="directory of inputs that are kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay and len(arguments.target) != 1:
        parser.error("--replay needs the target that the input is for")
    return arguments


def _has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def _fuzz(name: str, corpus: Path, seconds: int) -> int:
    """Fuzz one target in a process of its own; prints the result. Returns 0, or 1 after a crash."""
    crashes = corpus / "crashes"
    for directory in (corpus / name, crashes):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fuzz", "--child", name, "--seconds", str(seconds), "--corpus", str(corpus)]
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=base) as scratch, tempfile.TemporaryFile() as output:
        known = set(crashes.iterdir())
        environment = {**os.environ, DIRECTORY: scratch}
        status = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
        output.seek(0)
        text = output.read().decode(errors="replace")
        found = sorted(set(crashes.iterdir()) - known)
    stats = dict(_STATS.findall(text))
    coverage = _COVERAGE.findall(text)
    size = sum(1 for _ in (corpus / name).iterdir())
    print(
        f"fuzz: {name}: {stats.get('number_of_executed_units', '0')} executions in {time.monotonic() - began:.0f} s, "
        f"coverage {coverage[-1] if coverage else 'not measured'}, corpus {size}, crashes {len(found)}",
        flush=True,
    )
    if status == 0 and not found:
        return 0
    print(text[-6000:])
    for path in found:
        print(f"fuzz: {name}: reproducer {path}; scripts/fuzz {name} --replay {path}")
    return 1


def _fuzz_here(name: str, corpus: Path, seconds: int) -> int:
    prefix = f"{corpus / 'crashes'}/{name}-"
    if not _has_atheris():
        return _fuzz_blindly(name, prefix, seconds)
    atheris: Any = importlib.import_module("atheris")
    # Not yaml: its scanner gets ten times slower by that, which is then taken for a crash.
    with atheris.instrument_imports(include=["moorage", "tarfile", "elftools"]):
        from fuzz.targets import TARGETS
    from fuzz.harness import Limits

    target, limits = TARGETS[name], Limits()
    for index, seed in enumerate(target.seeds):
        (corpus / name / f"seed-{index}").write_bytes(seed)

    def change(data: bytes, most_bytes: int, seed: int) -> bytes:
        random = Random(seed)
        made = bytes(atheris.Mutate(data, most_bytes)) if random.random() < 0.4 else target.mutate(data, random)
        return made[:most_bytes]

    flags = {
        "max_total_time": seconds, "timeout": HANG_SECONDS, "rss_limit_mb": RSS_MB, "artifact_prefix": prefix,
        "print_final_stats": 1, "max_len": 256 * 1024, "len_control": 0,
    }  # fmt: skip
    words = [sys.argv[0], *(f"-{key}={value}" for key, value in flags.items()), str(corpus / name)]
    atheris.Setup(words, lambda data: limits.execute(target, data), custom_mutator=change)
    atheris.Fuzz()
    return 0


def _fuzz_blindly(name: str, prefix: str, seconds: int) -> int:
    """Without coverage: inputs are made of the seeds alone."""
    from fuzz.harness import Limits, generate
    from fuzz.targets import TARGETS

    target, limits, random = TARGETS[name], Limits(), Random()
    ends_at, executions, status = time.monotonic() + seconds, 0, 0
    while time.monotonic() < ends_at and status == 0:
        data = generate(target, random, target.seeds)
        executions += 1
        try:
            limits.execute(target, data)
        except Exception:  # noqa: BLE001 - that is what is looked for
            path = Path(f"{prefix}{sha1(data).hexdigest()}")
            path.write_bytes(data)
            traceback.print_exc()
            status = 1
    print(f"stat::number_of_executed_units: {executions}")
    return status


sys.exit(main())
