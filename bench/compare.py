"""One engine with and without something, in interleaved rounds: what a change gains on a machine that is never idle.

    scripts/bench compare one --without parallel-unmount --rounds 15
    scripts/bench compare one --source /path/to/another/checkout --rounds 20

``start`` is a cold start of some plugins, ``one`` an enable, a crash and a disable of one, with its calls to
containerd. The other sides are this checkout without something that has a name here, and another checkout; there may be
none. Processor time is the engine's and containerd's.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import machine
from bench.engine import ONE
from bench.targets import LIST_SECONDS, Moorage, accepts, until

__all__ = ("main",)

_IN_TURN = """
async def in_turn(*jobs):
    for job in jobs:
        await job()
"""
WITHOUT = {
    "parallel-unmount": f"{_IN_TURN}\nfrom moorage.engine import runner; runner.side_by_side = in_turn",
}
"""What can be left out, each with the Python that does so before the program is run."""
_PROGRAM = "import sys; sys.argv[0] = 'moorage'\nfrom moorage.__main__ import main\nsys.exit(main())"

_OF_METRICS = "Version.Version"  # a call that the query of the metrics makes

Note = Callable[[str, float], None]


class Side(Moorage):
    """An engine of some sources, with some Python before it."""

    def __init__(self, base: Path, source: Path, before: str) -> None:
        base.mkdir()
        super().__init__(base)
        self._source, self._before = source, before

    def _popen(self, verb: str) -> subprocess.Popen[bytes]:
        environment = {**self.environment, "PYTHONPATH": str(self._source / "src")}
        command = [sys.executable, "-c", f"{self._before}\n{_PROGRAM}", verb]
        command += ["--root", str(self.root), "--exec-root", str(self.exec_root)]
        with self.log.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment)

    def processor_time(self) -> float:
        """Seconds that the engine and its containerd have used."""
        return machine.cpu_seconds(self.pid) + machine.cpu_seconds(self.containerd_pid())


def _start(side: Side, note: Note, plugins: int) -> None:
    began = time.perf_counter()
    side.start(wait=False)
    until(side.answers, "the API answers")
    note("API answers", time.perf_counter() - began)
    sockets = [side.socket_of(f"p{number}") for number in range(plugins)]
    for listens in sockets:
        until(lambda listens=listens: accepts(listens), "a plugin listens")  # type: ignore[misc]
    note("last plugin listens", time.perf_counter() - began)
    until(lambda: side.all_ready(plugins), "all are shown ready", interval=LIST_SECONDS)
    note("processor time", side.processor_time())
    side.down()


@contextmanager
def _noted(side: Side, note: Note, action: str, *, settles: float = 0.0) -> Iterator[None]:
    """Note what the block takes: processor time and calls, those in the ``settles`` seconds after it included."""
    calls, used, began = side.call_seconds(), side.processor_time(), time.perf_counter()
    yield
    if not settles:  # else the block notes it, when it is over
        note(action, time.perf_counter() - began)
    time.sleep(settles)
    note(f"processor time of {action}", side.processor_time() - used)
    for method, seconds in side.call_seconds().items():
        if method != _OF_METRICS and seconds > calls.get(method, 0.0):
            note(f"{action}: {method}", seconds - calls.get(method, 0.0))


def _one(side: Side, note: Note, _: int) -> None:
    with _noted(side, note, "enable"):
        side.enable(ONE)
    pid, listens = side.plugin_pid(ONE), side.socket_of(ONE)
    time.sleep(0.1)  # what follows an enable is over
    with _noted(side, note, "crash", settles=0.2):  # until the exited run is removed
        began = time.perf_counter()
        os.kill(pid, 9)
        until(lambda: not accepts(listens), "the plugin has exited")
        until(lambda: accepts(listens), "the plugin listens again")
        note("crash", time.perf_counter() - began)
        until(lambda: side.state(ONE) == "ready", "it is shown ready")
    with _noted(side, note, "disable"):
        side.disable(ONE)


def _prepare(side: Side, what: str, plugins: int) -> None:
    side.start()
    names = [f"p{number}" for number in range(plugins)] if what == "start" else [ONE]
    for name in names:
        side.create(name)
        side.enable(name)
    if what == "start":
        side.down()
    else:
        side.disable(ONE)


Results = dict[str, dict[str, list[float]]]
"""Every value, by figure and side, in the order of the rounds."""


def _measure(sides: dict[str, Side], what: str, rounds: int, plugins: int, seed: int) -> Results:
    found: Results = {}
    order, step = random.Random(seed), _start if what == "start" else _one
    for side in sides.values():
        _prepare(side, what, plugins)
    for number in range(rounds + 1):
        for name in order.sample(sorted(sides), len(sides)):
            values: dict[str, float] = {}
            step(sides[name], values.__setitem__, plugins)
            for figure, value in values.items() if number else ():  # in the first round modules are compiled
                found.setdefault(figure, {}).setdefault(name, []).append(value)
    return found


def _table(found: Results) -> Iterator[str]:
    """For each figure and other side the medians, their ratio, and in how many rounds this one was less."""
    for figure, by in sorted(found.items(), key=lambda item: ":" in item[0]):
        own = by.get("here", [])
        if set(by) <= {"here"}:
            yield f"{figure:36} {1000 * statistics.median(own):8.1f} ms"
        for name, other in by.items():
            if name != "here" and own:
                one, two = statistics.median(own), statistics.median(other)
                less = sum(left < right for left, right in zip(own, other, strict=False))
                medians = f"{1000 * one:8.1f} ms, {name} {1000 * two:8.1f} ms"
                yield f"{figure:36} {medians}, ratio {one / two:.2f}, less in {less} of {len(own)}"


def main() -> None:
    """One comparison, printed as a table."""
    parser = argparse.ArgumentParser(prog="scripts/bench compare", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("start", "one"))
    parser.add_argument("--without", choices=sorted(WITHOUT), action="append", default=[])
    parser.add_argument("--source", type=Path, help="another checkout, whose engine is the other side")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--plugins", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    here = Path(__file__).parent.parent
    others = {f"without {name}": (here, WITHOUT[name]) for name in options.without}
    if options.source:
        others[str(options.source)] = (options.source.resolve(), "")
    with TemporaryDirectory(prefix="moorage-compare-", dir="/var/tmp") as scratch, ExitStack() as stack:
        sides = {}
        for number, (name, (source, before)) in enumerate({"here": (here, ""), **others}.items()):
            sides[name] = Side(Path(scratch, str(number)), source, before)
            stack.callback(sides[name].close)
        print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores, {machine.commit()}")
        for line in _table(_measure(sides, options.what, options.rounds, options.plugins, options.seed)):
            print(line)


if __name__ == "__main__":
    main()
