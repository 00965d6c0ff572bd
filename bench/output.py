"""Output of a plugin through a whole engine, against `ctr` that discards it, and against another version of Moorage.

Rounds are interleaved in a random order. Besides the MB/s that the plugin sees there are, for each MiB, the
milliseconds of CPU of plugin, shim and keeper, how often the plugin was interrupted, and the reads of the shim. That
distinguishes the causes on a machine with other work. Called by scripts/bench. Needs root.
"""

import argparse
import os
import random
import shutil
import statistics
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp

from bench import machine
from bench.targets import CGROUP_PARENT, Bundles, Ctr, Moorage, request_output

from support import leftovers

__all__ = ("main",)

KINDS = {"large writes": 65536, "a write per line": 128}
NAME = "one"
SOURCE = Path(__file__).resolve().parents[1] / "src"


class Version(Moorage):
    """An engine of the source in one directory, with one plugin."""

    def __init__(self, base: Path, source: Path) -> None:
        base.mkdir()
        self._source = source
        super().__init__(base)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "PYTHONPATH": str(self._source)}

    def begin(self) -> None:
        self.start()
        self.create(NAME)
        self.enable(NAME)

    def pids(self) -> dict[str, int]:
        (keeper,) = self.exec_root.glob("**/k.sock")
        (shim,) = self.shims()
        return {"plugin": self.plugin_pid(NAME), "shim": shim, "keeper": int(keeper.with_name("pid").read_text())}


def used(pids: dict[str, int]) -> dict[str, float]:
    """What these processes have used so far."""
    switches = Path(f"/proc/{pids['plugin']}/status").read_text().rpartition("nonvoluntary_ctxt_switches:")[2]
    reads = Path(f"/proc/{pids['shim']}/io").read_text().partition("syscr:")[2].split()[0]
    cpu = {f"{name} ms": 1000 * machine.cpu_seconds(pid) for name, pid in pids.items()}
    return {**cpu, "interruptions": float(switches), "shim reads": float(reads)}


class Results:
    """Every single value, by side, kind of write, and what was measured."""

    def __init__(self, megabytes: int) -> None:
        self.megabytes = megabytes
        self.values: dict[str, dict[str, dict[str, list[float]]]] = {}

    def note(self, side: str, kind: str, what: str, value: float) -> None:
        self.values.setdefault(side, {}).setdefault(kind, {}).setdefault(what, []).append(value)

    def write_moorage(self, side: str, engine: Version) -> None:
        pids = engine.pids()
        for kind, piece in KINDS.items():
            before = used(pids)
            speed = request_output(engine.socket_of(NAME), self.megabytes << 20, piece)
            self.note(side, kind, "MB/s", speed)
            for what, value in used(pids).items():
                self.note(side, kind, what, (value - before[what]) / self.megabytes)

    def write_ctr(self, ctr: Ctr, number: int) -> None:
        writes = [(self.megabytes << 20, piece) for piece in KINDS.values()]
        for kind, speed in zip(KINDS, ctr.write(f"ctr-{number}", writes), strict=True):
            self.note("ctr", kind, "MB/s", speed)

    def table(self) -> str:
        """Medians; the ratio is the median of the rounds' own ratios to ctr."""
        lines = []
        for kind in KINDS:
            ctr = self.values["ctr"][kind]["MB/s"]
            for side, kinds in self.values.items():
                speeds = kinds[kind]["MB/s"]
                ratio = statistics.median(own / peer for own, peer in zip(speeds, ctr, strict=True))
                more = [f"{what} {statistics.median(found):.2f}" for what, found in kinds[kind].items()][1:]
                line = (
                    f"{kind:16} {side:7} {statistics.median(speeds):4.0f} MB/s ({min(speeds):.0f} to {max(speeds):.0f})"
                )
                lines.append(f"{line} {ratio:.2f} of ctr; a MiB: {', '.join(more)}" if more else line)
        return "\n".join(lines)


def measure(rounds: int, megabytes: int, sources: dict[str, Path]) -> Results:
    """Run all rounds."""
    results = Results(megabytes)
    directory = Path(mkdtemp(prefix="moorage-bench-", dir="/var/tmp"))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        undo.callback(leftovers.remove_cgroups, CGROUP_PARENT)
        engines = {side: Version(directory / side, source) for side, source in sources.items()}
        for engine in engines.values():
            undo.callback(engine.close)
            engine.begin()
        own = engines["moorage"]
        ctr = Ctr(Bundles(directory / "bundles", own.spec_of(NAME)), own.containerd_address)
        for number in range(rounds):
            for side in random.sample(["ctr", *engines], len(engines) + 1):
                if side == "ctr":
                    results.write_ctr(ctr, number)
                else:
                    results.write_moorage(side, engines[side])
    return results


def main() -> None:
    """Measure, print the table, write every value to a file."""
    parser = argparse.ArgumentParser(prog="scripts/bench output", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=64, help="written a round in each way")
    parser.add_argument("--against", type=Path, help="directory of another version's source, as ../other/src")
    parser.add_argument("--output", type=Path, help="directory for the result as JSON")
    options = parser.parse_args()
    other = {"against": options.against.resolve()} if options.against else {}
    load, began_at = os.getloadavg(), datetime.now(UTC)
    results = measure(options.rounds, options.megabytes, {**other, "moorage": SOURCE})
    print(results.table())
    print(f"load before: {load[0]:.2f}, at the end: {os.getloadavg()[0]:.2f}")
    if options.output is not None:
        result = {
            "at": began_at.isoformat(timespec="seconds"),
            "commit": machine.commit(),
            "command": f"scripts/bench output --rounds {options.rounds} --megabytes {options.megabytes}",
            "machine": machine.describe(),
            "load": {"before": load, "after": os.getloadavg()},
            "figures": results.values,
        }
        print(f"written to {machine.write(options.output, began_at, result, 'output')}")


if __name__ == "__main__":
    main()
