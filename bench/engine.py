"""The engine against dockerd, `ctr` and bare runc, all in one run.

Rounds are interleaved, in an order that is drawn again for each round, because the load of the machine changes over
minutes. The same program is started by all four, under the same spec wherever the spec can be chosen. Needs root.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from bench import growth, machine
from bench.targets import (
    CGROUP_PARENT,
    LIST_SECONDS,
    Bundles,
    Ctr,
    Docker,
    Moorage,
    Runc,
    accepts,
    request_output,
    until,
)

from support import leftovers
from support.engines import actor

__all__ = ("Extent", "measure")

ONE = "one"
"""The plugin that is enabled, crashed and disabled again and again; the others stay disabled meanwhile."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int = 20
    """Of what is quick; of starts and stops of all plugins a quarter, two at least where there are two."""
    plugins: int = 30
    idle_seconds: float = 30.0
    megabytes: int = 64
    """Written a round by each that takes them fast."""
    package_megabytes: int = 100
    """Size of the packages that are installed."""
    seed: int = 0
    growth: tuple[int, ...] = growth.COUNTS
    """Numbers of plugins with which an engine is started."""

    @property
    def long_rounds(self) -> int:
        return max(self.rounds // 4, min(self.rounds, 2))


@dataclass
class Bench:
    """The four sides, and the figures so far."""

    extent: Extent
    moorage: Moorage
    docker: Docker
    ctr: Ctr
    runc: Runc
    results: dict[str, list[float]] = field(default_factory=dict)
    docker_sockets: list[Path] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [f"p{number:02}" for number in range(self.extent.plugins)]

    def note(self, name: str, value: float) -> None:
        self.results.setdefault(name, []).append(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.note(name, time.perf_counter() - began)


def measure(extent: Extent, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Every single value, by what was measured: seconds, MB/s, MB, percent. ``say`` gets the progress."""
    directory = Path(mkdtemp(prefix="moorage-bench-", dir="/var/tmp"))
    try:
        with _sides(directory, extent) as bench:
            order = random.Random(extent.seed)
            say("making plugins")
            _make_plugins(bench)
            bench.moorage.ls()  # compiles its modules
            say(f"{extent.rounds} rounds of enable, disable, crash, list")
            parts = [
                _one_of_moorage,
                _crash_moorage,
                _crash_standby,
                _one_of_dockers,
                _ctr,
                _runc,
                _ls_moorage,
                _ls_docker,
            ]
            _interleave(bench, extent.rounds, order, parts)
            say(f"{extent.long_rounds} rounds of output, and of dockerd's crash")
            _interleave(bench, extent.long_rounds, order, [_write_moorage, _write_docker, _write_ctr, _crash_dockers])
            say(f"{extent.long_rounds} rounds of start, restart and stop with {extent.plugins} plugins")
            _stop_both(bench)
            _interleave(bench, extent.long_rounds, order, [_all_of_moorage, _all_of_dockers, _all_of_runc])
            say(f"memory, and {extent.idle_seconds:g} s of doing nothing")
            _idle(bench)
            say("all plugins in one shim")
            _in_one_shim(bench)
            return bench.results
    finally:
        leftovers.remove_cgroups(CGROUP_PARENT)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _sides(directory: Path, extent: Extent) -> Iterator[Bench]:
    (directory / "ours").mkdir()
    moorage = Moorage(directory / "ours")
    (directory / "docker").mkdir()
    docker = Docker(directory / "docker")
    try:
        docker.wait_until_serving()
        moorage.start()
        moorage.create(ONE)
        moorage.enable(ONE)
        bundles = Bundles(directory / "bundles", moorage.spec_of(ONE))
        moorage.disable(ONE)
        yield Bench(extent, moorage, docker, Ctr(bundles, moorage.containerd_address), Runc(bundles))
    finally:
        try:
            moorage.close()
        finally:
            docker.stop()


def _interleave(bench: Bench, rounds: int, order: random.Random, parts: Sequence[Callable[[Bench, int], None]]) -> None:
    for number in range(rounds):
        for part in order.sample(parts, len(parts)):
            part(bench, number)


def _make_plugins(bench: Bench) -> None:
    for name in bench.names:
        bench.moorage.create(name)
    rootfs = bench.moorage.root.parent / "docker-rootfs"
    rootfs.mkdir()
    (rootfs / "actor").write_bytes(actor())
    (rootfs / "actor").chmod(0o755)
    for name in (ONE, *bench.names):
        bench.docker.create(name, rootfs)


# one plugin


def _one_of_moorage(bench: Bench, _: int) -> None:
    with bench.timed("moorage: enable"):
        bench.moorage.enable(ONE)
    with bench.timed("moorage: disable"):
        bench.moorage.disable(ONE)


def _one_of_dockers(bench: Bench, _: int) -> None:
    with bench.timed("dockerd: enable"):
        bench.docker.enable_plugin(ONE)
    with bench.timed("dockerd: disable"):
        bench.docker.disable_plugin(ONE)


def _crash_moorage(bench: Bench, _: int) -> None:
    moorage = bench.moorage
    moorage.enable(ONE)
    _crash(bench, "moorage: crash", moorage.plugin_pid(ONE), moorage.socket_of(ONE))
    until(lambda: moorage.state(ONE) == "ready", "it is ready again")
    moorage.disable(ONE)


def _crash_standby(bench: Bench, _: int) -> None:
    moorage = bench.moorage
    moorage.set_standby(ONE, True)
    moorage.enable(ONE)
    until(lambda: moorage.more(ONE)["StandbyPid"], "it has a standby")
    _crash(bench, "moorage: crash, standby", moorage.plugin_pid(ONE), moorage.socket_of(ONE))
    until(lambda: moorage.state(ONE) == "ready", "it is ready again")
    moorage.disable(ONE)
    moorage.set_standby(ONE, False)


def _crash_dockers(bench: Bench, _: int) -> None:
    docker = bench.docker
    docker.enable_plugin(ONE)
    _crash(bench, "dockerd: crash", docker.plugin_pid(ONE), docker.socket_of(ONE))
    docker.disable_plugin(ONE)  # takes it more than ten seconds after a crash, so it is not what is compared


def _crash(bench: Bench, name: str, pid: int, listens: Path) -> None:
    with bench.timed(name):
        os.kill(pid, signal.SIGKILL)
        until(lambda: not leftovers.is_alive(pid), "it is gone")
        until(lambda: accepts(listens), "it accepts again")


def _ctr(bench: Bench, number: int) -> None:
    bench.note("ctr run -d", bench.ctr.run(f"ctr-{number}"))


def _runc(bench: Bench, number: int) -> None:
    bench.note("runc create, start", bench.runc.run([f"runc-{number}"]))


def _ls_moorage(bench: Bench, _: int) -> None:
    with bench.timed("moorage: ls"):
        bench.moorage.ls()


def _ls_docker(bench: Bench, _: int) -> None:
    with bench.timed("dockerd: ls"):
        bench.docker.ls()


# output

_KINDS = {"large writes": 65536, "a write per line": 128}


def _write_moorage(bench: Bench, _: int) -> None:
    bench.moorage.enable(ONE)
    for kind, piece in _KINDS.items():
        bench.note(
            f"moorage: {kind}", request_output(bench.moorage.socket_of(ONE), bench.extent.megabytes << 20, piece)
        )
    bench.moorage.disable(ONE)


def _write_docker(bench: Bench, _: int) -> None:
    bench.docker.enable_plugin(ONE)
    for kind, piece in _KINDS.items():  # an eighth, because it takes ten times as long
        listens = bench.docker.socket_of(ONE)
        bench.note(f"dockerd: {kind}", request_output(listens, (bench.extent.megabytes << 20) // 8, piece))
    bench.docker.disable_plugin(ONE)


def _write_ctr(bench: Bench, number: int) -> None:
    writes = [(bench.extent.megabytes << 20, piece) for piece in _KINDS.values()]
    for kind, speed in zip(_KINDS, bench.ctr.write(f"ctr-w{number}", writes), strict=True):
        bench.note(f"ctr discarding: {kind}", speed)


# all plugins


def _stop_both(bench: Bench) -> None:
    """Enable all, then stop both: every start from now on starts all of them."""
    sides: dict[str, Callable[[], list[int]]] = {
        "moorage": lambda: _moorage_together(bench.moorage),
        "dockerd": lambda: _dockers_together(bench.docker),
    }
    before = {side: machine.pss_mb(find()) for side, find in sides.items()}
    for name in bench.names:
        bench.moorage.enable(name)
        bench.docker.enable_plugin(name)
    for side, find in sides.items():
        bench.note(f"{side}: PSS a plugin", (machine.pss_mb(find()) - before[side]) / bench.extent.plugins)
    bench.docker_sockets = [bench.docker.socket_of(name) for name in bench.names]
    bench.moorage.down()
    bench.docker.end()


def _start_moorage(bench: Bench, side: str = "moorage") -> None:
    moorage, count = bench.moorage, bench.extent.plugins
    began = time.perf_counter()
    moorage.start(wait=False)
    until(moorage.answers, "the API answers")
    bench.note(f"{side}: API", time.perf_counter() - began)
    for listens in [moorage.socket_of(name) for name in bench.names]:
        until(lambda listens=listens: accepts(listens), "a plugin of Moorage listens")  # type: ignore[misc]
    bench.note(f"{side}: start", time.perf_counter() - began)
    until(lambda: moorage.all_ready(count), "all are shown ready", interval=LIST_SECONDS)


def _all_of_moorage(bench: Bench, _: int) -> None:
    moorage, count = bench.moorage, bench.extent.plugins
    _start_moorage(bench)
    pids = [moorage.plugin_pid(name) for name in bench.names]
    moorage.end(signal.SIGKILL)
    with bench.timed("moorage: restart"):
        moorage.start(wait=False)
        until(lambda: moorage.all_ready(count), "all are shown ready again", interval=LIST_SECONDS)
    assert pids == [moorage.plugin_pid(name) for name in bench.names], "a restart of the engine touched plugins"
    with bench.timed("moorage: stop"):
        moorage.down()


def _start_docker(bench: Bench) -> None:
    """It answers only when its plugins are up, and may start them before that."""
    docker = bench.docker
    began = time.perf_counter()
    docker.start_again()
    for listens in bench.docker_sockets:
        until(lambda listens=listens: accepts(listens), "a plugin of dockerd listens")  # type: ignore[misc]
    bench.note("dockerd: start", time.perf_counter() - began)
    until(docker.answers, "dockerd answers")
    bench.note("dockerd: API", time.perf_counter() - began)


def _all_of_dockers(bench: Bench, _: int) -> None:
    docker, count = bench.docker, bench.extent.plugins
    _start_docker(bench)
    docker.kill()
    with bench.timed("dockerd: live-restore"):
        docker.start_again("--live-restore")
        until(lambda: docker.all_enabled(count), "all are shown enabled again", interval=LIST_SECONDS)
    docker.kill()
    docker.start_again()  # without it, or it would leave the plugins alone when it is stopped
    until(docker.answers, "dockerd answers")
    with bench.timed("dockerd: stop"):
        docker.end()


def _all_of_runc(bench: Bench, number: int) -> None:
    ids = [f"runc-{number}-{name}" for name in bench.names]
    bench.note("runc, all at once", bench.runc.run(ids))


# memory, and doing nothing


def _moorage_together(moorage: Moorage) -> list[int]:
    return [moorage.pid, moorage.containerd_pid(), *moorage.shims()]


def _dockers_together(docker: Docker) -> list[int]:
    containerd, shims = docker.children()
    return [docker.pid, *containerd, *shims]


def _in_one_shim(bench: Bench) -> None:
    """All plugins of Moorage in one shared shim."""
    moorage, count = bench.moorage, bench.extent.plugins
    moorage.down()
    moorage.serving = ("--shim", "shared")
    _start_moorage(bench, "moorage, one shim")
    together = machine.pss_mb(_moorage_together(moorage))
    for name in bench.names[1:]:
        moorage.disable(name)
    moorage.down()  # what has run keeps its memory
    moorage.start()
    until(lambda: moorage.all_ready(1), "one is shown ready", interval=LIST_SECONDS)
    bench.note(
        "moorage, one shim: PSS a plugin", (together - machine.pss_mb(_moorage_together(moorage))) / max(count - 1, 1)
    )
    moorage.serving = ()


def _idle(bench: Bench) -> None:
    """Both with all their plugins, and no requests."""
    moorage, docker, extent = bench.moorage, bench.docker, bench.extent
    moorage.start()
    docker.start_again()
    until(lambda: moorage.all_ready(extent.plugins), "all plugins of Moorage are ready", interval=LIST_SECONDS)
    until(docker.answers, "dockerd answers")
    time.sleep(min(extent.idle_seconds / 5, 5))  # what the start has left to do
    (dockers_containerd,), _ = docker.children()
    watched = {
        "moorage": moorage.pid,
        "moorage: containerd": moorage.containerd_pid(),
        "dockerd": docker.pid,
        "dockerd: containerd": dockers_containerd,
    }
    before = {name: machine.cpu_seconds(pid) for name, pid in watched.items()}
    began = time.perf_counter()
    time.sleep(extent.idle_seconds)
    took = time.perf_counter() - began
    for name, pid in watched.items():
        used = machine.cpu_seconds(pid) - before[name]
        bench.note(f"{name} idle CPU" if ":" in name else f"{name}: idle CPU", 100 * used / took)
        bench.note(f"{name} PSS" if ":" in name else f"{name}: PSS", machine.pss_mb([pid]))
    bench.note("moorage: RSS", machine.rss_mb(moorage.pid))
    bench.note("dockerd: RSS", machine.rss_mb(docker.pid))
