"""The engine against dockerd, `ctr` and bare runc, all in one run.

Rounds are interleaved, in an order that is drawn anew for each round, because the machine's mood changes over minutes.
The same program is started by all four, under the same spec where the spec is ours to give. Needs root.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from bench import machine
from bench.sides import CGROUP_PARENT, Bundles, Ctr, Docker, Ours, Runc, accepts, ask_to_write, until

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

    @property
    def long_rounds(self) -> int:
        return max(self.rounds // 4, min(self.rounds, 2))


@dataclass
class Bench:
    """The four sides, and the figures so far."""

    extent: Extent
    ours: Ours
    docker: Docker
    ctr: Ctr
    runc: Runc
    figures: dict[str, list[float]] = field(default_factory=dict)
    docker_sockets: list[Path] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [f"p{number:02}" for number in range(self.extent.plugins)]

    def note(self, name: str, value: float) -> None:
        self.figures.setdefault(name, []).append(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.note(name, time.perf_counter() - began)


def measure(extent: Extent, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Every single value, by what was measured: seconds, MB/s, MB, percent. ``say`` is told what is going on."""
    directory = Path(mkdtemp(prefix="moorage-bench-", dir="/var/tmp"))
    try:
        with _sides(directory, extent) as bench:
            order = random.Random(extent.seed)
            say("making plugins")
            _make_plugins(bench)
            bench.ours.ls()  # compiles its modules
            say(f"{extent.rounds} rounds of enable, disable, crash, list")
            parts = [_one_of_ours, _crash_ours, _one_of_dockers, _ctr, _runc, _ls_ours, _ls_docker]
            _interleave(bench, extent.rounds, order, parts)
            say(f"{extent.long_rounds} rounds of output, and of dockerd's crash")
            _interleave(bench, extent.long_rounds, order, [_write_ours, _write_docker, _write_ctr, _crash_dockers])
            say(f"{extent.long_rounds} rounds of start, restart and stop with {extent.plugins} plugins")
            _stop_both(bench)
            _interleave(bench, extent.long_rounds, order, [_all_of_ours, _all_of_dockers, _all_of_runc])
            say(f"memory, and {extent.idle_seconds:g} s of doing nothing")
            _idle(bench)
            say("all plugins in one shim")
            _in_one_shim(bench)
            return bench.figures
    finally:
        leftovers.remove_cgroups(CGROUP_PARENT)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _sides(directory: Path, extent: Extent) -> Iterator[Bench]:
    (directory / "ours").mkdir()
    ours = Ours(directory / "ours")
    (directory / "docker").mkdir()
    docker = Docker(directory / "docker")
    try:
        docker.wait_until_serving()
        ours.start()
        ours.create(ONE)
        ours.enable(ONE)
        bundles = Bundles(directory / "bundles", ours.spec_of(ONE))
        ours.disable(ONE)
        yield Bench(extent, ours, docker, Ctr(bundles, ours.containerd_address), Runc(bundles))
    finally:
        try:
            ours.close()
        finally:
            docker.stop()


def _interleave(bench: Bench, rounds: int, order: random.Random, parts: list[Callable[[Bench, int], None]]) -> None:
    for number in range(rounds):
        for part in order.sample(parts, len(parts)):
            part(bench, number)


def _make_plugins(bench: Bench) -> None:
    for name in bench.names:
        bench.ours.create(name)
    rootfs = bench.ours.root.parent / "docker-rootfs"
    rootfs.mkdir()
    (rootfs / "actor").write_bytes(actor())
    (rootfs / "actor").chmod(0o755)
    for name in (ONE, *bench.names):
        bench.docker.create(name, rootfs)


# one plugin


def _one_of_ours(bench: Bench, _: int) -> None:
    with bench.timed("moorage: enable"):
        bench.ours.enable(ONE)
    with bench.timed("moorage: disable"):
        bench.ours.disable(ONE)


def _one_of_dockers(bench: Bench, _: int) -> None:
    with bench.timed("dockerd: enable"):
        bench.docker.enable_plugin(ONE)
    with bench.timed("dockerd: disable"):
        bench.docker.disable_plugin(ONE)


def _crash_ours(bench: Bench, _: int) -> None:
    ours = bench.ours
    ours.enable(ONE)
    _crash(bench, "moorage: crash", ours.plugin_pid(ONE), ours.socket_of(ONE))
    until(lambda: ours.state(ONE) == "ready", "it is ready again")
    ours.disable(ONE)


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


def _ls_ours(bench: Bench, _: int) -> None:
    with bench.timed("moorage: ls"):
        bench.ours.ls()


def _ls_docker(bench: Bench, _: int) -> None:
    with bench.timed("dockerd: ls"):
        bench.docker.ls()


# output

_KINDS = {"large writes": 65536, "a write per line": 128}


def _write_ours(bench: Bench, _: int) -> None:
    bench.ours.enable(ONE)
    for kind, piece in _KINDS.items():
        bench.note(f"moorage: {kind}", ask_to_write(bench.ours.socket_of(ONE), bench.extent.megabytes << 20, piece))
    bench.ours.disable(ONE)


def _write_docker(bench: Bench, _: int) -> None:
    bench.docker.enable_plugin(ONE)
    for kind, piece in _KINDS.items():  # an eighth, because it takes ten times as long
        listens = bench.docker.socket_of(ONE)
        bench.note(f"dockerd: {kind}", ask_to_write(listens, (bench.extent.megabytes << 20) // 8, piece))
    bench.docker.disable_plugin(ONE)


def _write_ctr(bench: Bench, number: int) -> None:
    writes = [(bench.extent.megabytes << 20, piece) for piece in _KINDS.values()]
    for kind, speed in zip(_KINDS, bench.ctr.write(f"ctr-w{number}", writes), strict=True):
        bench.note(f"ctr discarding: {kind}", speed)


# all plugins


def _stop_both(bench: Bench) -> None:
    """Enable all, then stop both: every start from now on brings all of them up."""
    sides = {"moorage": lambda: _ours_together(bench.ours), "dockerd": lambda: _dockers_together(bench.docker)}
    before = {side: machine.pss_mb(find()) for side, find in sides.items()}
    for name in bench.names:
        bench.ours.enable(name)
        bench.docker.enable_plugin(name)
    for side, find in sides.items():
        bench.note(f"{side}: PSS a plugin", (machine.pss_mb(find()) - before[side]) / bench.extent.plugins)
    bench.docker_sockets = [bench.docker.socket_of(name) for name in bench.names]
    bench.ours.down()
    bench.docker.end()


def _start_ours(bench: Bench, side: str = "moorage") -> None:
    ours, count = bench.ours, bench.extent.plugins
    began = time.perf_counter()
    ours.start(wait=False)
    until(ours.answers, "our API answers")
    bench.note(f"{side}: API", time.perf_counter() - began)
    for listens in [ours.socket_of(name) for name in bench.names]:
        until(lambda listens=listens: accepts(listens), "a plugin of ours listens")  # type: ignore[misc]
    bench.note(f"{side}: start", time.perf_counter() - began)
    until(lambda: ours.all_ready(count), "all are shown ready")


def _all_of_ours(bench: Bench, _: int) -> None:
    ours, count = bench.ours, bench.extent.plugins
    _start_ours(bench)
    pids = [ours.plugin_pid(name) for name in bench.names]
    ours.end(signal.SIGKILL)
    with bench.timed("moorage: restart"):
        ours.start(wait=False)
        until(lambda: ours.all_ready(count), "all are shown ready again")
    assert pids == [ours.plugin_pid(name) for name in bench.names], "a restart of the engine touched plugins"
    with bench.timed("moorage: stop"):
        ours.down()


def _start_docker(bench: Bench) -> None:
    """It answers only when its plugins are up, and may start them while it is not asked."""
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
        until(lambda: docker.all_enabled(count), "all are shown enabled again")
    docker.kill()
    docker.start_again()  # without it, or it would leave the plugins alone when it is stopped
    until(docker.answers, "dockerd answers")
    with bench.timed("dockerd: stop"):
        docker.end()


def _all_of_runc(bench: Bench, number: int) -> None:
    ids = [f"runc-{number}-{name}" for name in bench.names]
    bench.note("runc, all at once", bench.runc.run(ids))


# memory, and doing nothing


def _ours_together(ours: Ours) -> list[int]:
    return [ours.pid, ours.containerd_pid(), *ours.shims()]


def _dockers_together(docker: Docker) -> list[int]:
    containerd, shims = docker.children()
    return [docker.pid, *containerd, *shims]


def _in_one_shim(bench: Bench) -> None:
    """All plugins of ours, with a shim that they share."""
    ours, count = bench.ours, bench.extent.plugins
    ours.down()
    ours.serving = ("--shim", "shared")
    _start_ours(bench, "moorage, one shim")
    together = machine.pss_mb(_ours_together(ours))
    for name in bench.names[1:]:
        ours.disable(name)
    ours.down()  # what has run keeps its memory
    ours.start()
    until(lambda: ours.all_ready(1), "one is shown ready")
    bench.note("moorage, one shim: PSS a plugin", (together - machine.pss_mb(_ours_together(ours))) / max(count - 1, 1))
    ours.serving = ()


def _idle(bench: Bench) -> None:
    """Both with all their plugins, and nobody who asks anything."""
    ours, docker, extent = bench.ours, bench.docker, bench.extent
    ours.start()
    docker.start_again()
    until(lambda: ours.all_ready(extent.plugins), "all of ours are ready")
    until(docker.answers, "dockerd answers")
    time.sleep(min(extent.idle_seconds / 5, 5))  # what the start has left to do
    (dockers_containerd,), _ = docker.children()
    watched = {
        "moorage": ours.pid,
        "moorage: containerd": ours.containerd_pid(),
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
    bench.note("moorage: RSS", machine.rss_mb(ours.pid))
    bench.note("dockerd: RSS", machine.rss_mb(docker.pid))
