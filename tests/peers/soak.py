"""Volume operations of podman, dockerd and a plain program while engine, proxy and plugin are killed again and again.

What fails is counted by what was killed meanwhile (rows P04, P11 and P18).
"""

import http.client
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.consumers import Consumers, Driver, plugin_name
from support.consumers import Docker, Failed, Podman
from support.engines import EngineProcess, Refused
from support.foreground import wait_until
from support.limits import limit

_LOST_MOUNT = ("transport endpoint is not connected", "software caused connection abort", "read-only file system")
"""What a program gets of a dead mount, or of the placeholder over it (row P11a)."""
_NOT_REPEATED = "it exited before it answered"
_LATE = ("in time", "no such volume")
"""dockerd takes each error of a Get for the second one."""
QUERIES_WAIT = 3.0
"""Seconds that Get, List and Path wait for a plugin that starts (row P04)."""
ENGINE_SECONDS, PROXY_SECONDS, PLUGIN_SECONDS = 10.0, 17.0, 23.0


@dataclass(frozen=True)
class Outage:
    """A kill, and when what was killed served again."""

    what: str
    started: float
    exited: float
    """When the killed process had exited: until then it may accept, and break, a connection."""
    until: float


@dataclass(frozen=True)
class Failure:
    """An operation that failed."""

    owner: str
    """With the number of its attempt, which is its volume's name."""
    started: float
    until: float
    text: str
    is_consequence: bool = False
    """Whether the same attempt had failed before: a volume that was not created cannot be removed."""

    @property
    def worker(self) -> str:
        return self.owner.rstrip("0123456789")

    def cause(self, outages: Sequence[Outage]) -> str:
        """What explains it, as rows P04 and P18 allow it; empty for nothing.

        ``late``: the plugin was down for longer than calls wait for it; ``mount``: the file system of a plugin that was
        killed, which no call repairs for its users; ``plugin``: a call that may not be repeated, under way when the
        plugin was killed; ``proxy``: under way when the proxy was killed. That a call came while something was down
        explains nothing: it waits.
        """
        near = [each for each in outages if each.started <= self.until and self.started <= each.until]
        text = self.text.lower()
        down = [each for each in near if each.what == "plugin"]
        if down:
            if self.until - self.started >= QUERIES_WAIT and any(each in text for each in _LATE):
                return "late"
            if any(each in text for each in _LOST_MOUNT):
                return "mount"
            if _NOT_REPEATED in text:
                return "plugin"
        return "proxy" if self.proxy_kills(outages) else ""

    def proxy_kills(self, outages: Sequence[Outage]) -> list[Outage]:
        """The kills of the proxy under which it was under way."""
        return [
            each
            for each in outages
            if each.what == "proxy" and each.started <= self.until and self.started <= each.exited
        ]


@dataclass
class Soak:
    """The workers, the killers, and what they saw."""

    consumers: Consumers
    house: EngineProcess
    driver: Driver
    seconds: float
    done: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    notices: list[float] = field(default_factory=list)
    """Seconds from each kill of the proxy until another one was started."""
    longest: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Of each worker, the seconds of its longest attempt, and which that was."""
    lost: list[str] = field(default_factory=list)
    """What was written with success and is not in the driver's data."""

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self._step = threading.local()
        self._stop = threading.Event()
        self._engine = threading.Lock()

    def run(self) -> None:
        """Return after the time, when all that was killed runs again."""
        workers = [
            threading.Thread(target=self._repeat, args=(name, act))
            for name, act in (("podman", self._podman), ("docker", self._docker), ("program", self._program))
        ]
        for each in workers:
            each.start()
        try:
            self._kill_in_turn()
        finally:
            self._stop.set()
            for each in workers:
                each.join()
        self.house.until(plugin_name(self.driver), "ready")

    def unexplained(self) -> list[str]:
        """The failures that have no such cause, and further ones of a worker that one kill of the proxy explains."""
        found: list[Failure] = []
        seen: set[tuple[str, Outage]] = set()
        first = [each for each in self.failures if not each.is_consequence]
        for each in first:
            cause = each.cause(self.outages)
            kills = each.proxy_kills(self.outages)
            unused = [kill for kill in kills if (each.worker, kill) not in seen]
            if not cause or (cause == "proxy" and not unused):
                found.append(each)
            elif cause == "proxy":
                seen.add((each.worker, unused[0]))
        explained = {each.owner for each in first if each not in found}
        found += [each for each in self.failures if each.is_consequence and each.owner not in explained]
        return [self._described(each) for each in found]

    def _described(self, failure: Failure) -> str:
        start = failure.started - 5.0
        near = [each for each in self.outages if start <= each.until and each.started <= failure.until]
        down = [f"{each.what} {each.started - self.started:.2f} to {each.until - self.started:.2f}" for each in near]
        times = f"{failure.started - self.started:.2f} to {failure.until - self.started:.2f} s"
        what = "in consequence" if failure.is_consequence else "failed"
        return f"{failure.owner} {what} at {times}: {failure.text.strip()} (down: {', '.join(down) or 'nothing'})"

    def summary(self) -> str:
        """One line."""
        causes = Counter(each.cause(self.outages) or "nothing" for each in self.failures if not each.is_consequence)
        kills = Counter(each.what for each in self.outages)
        return (
            f"{sum(self.done.values())} operations {dict(self.done)} in {self.seconds:g} s, kills {dict(kills)}, "
            f"failures by cause {dict(causes)}, lost {len(self.lost)}, longest attempts "
            + ", ".join(f"{which} {seconds:.1f} s" for seconds, which in self.longest.values())
        )

    # what is killed

    def _kill_in_turn(self) -> None:
        """Each at its times; what takes long does not delay the others."""
        self.started = started = time.monotonic()
        periods = ((ENGINE_SECONDS, self._kill_engine), (PROXY_SECONDS, self._kill_proxy))
        plan = [(PLUGIN_SECONDS, self._kill_plugin), *periods]
        due = sorted(
            ((number * every, kill) for every, kill in plan for number in range(1, int(self.seconds / every) + 1)),
            key=lambda each: each[0],
        )
        threads = []
        for at, kill in due:
            time.sleep(max(0.0, started + at - time.monotonic()))
            threads.append(threading.Thread(target=self._measure, args=(kill,)))
            threads[-1].start()
        time.sleep(max(0.0, started + self.seconds - time.monotonic()))
        for each in threads:
            each.join()

    def _measure(self, kill: Callable[[], tuple[str, float]]) -> None:
        started = time.monotonic()
        what, exited = kill()
        self.outages.append(Outage(what, started, exited, time.monotonic()))

    def _kill_engine(self) -> tuple[str, float]:
        with self._engine:
            self.house.end(signal.SIGKILL)
            exited = time.monotonic()
            self.house.start()
        return "engine", exited

    def _kill_proxy(self) -> tuple[str, float]:
        path = self.house.exec_root / "proxy/pid"
        killed = int(path.read_text())
        at = _kill(killed)
        self._until(lambda: int(path.read_text()) != killed, "another proxy")
        self.notices.append(time.monotonic() - at)
        self._until(lambda: self.driver.post("/Plugin.Activate")[0] == 200, "the other proxy serves")
        return "proxy", at

    def _kill_plugin(self) -> tuple[str, float]:
        before = self._more()
        exited = _kill(before["Pid"])

        def is_back() -> bool:
            more = self.house.more(plugin_name(self.driver))
            is_mounted = all(not each["Problem"] for each in more["Mounts"])
            return bool(more["State"] == "ready" and more["Pid"] not in (before["Pid"], 0, None) and is_mounted)

        self._until(is_back, "the plugin runs again, with its mounts")
        return "plugin", exited

    def _more(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def is_running() -> bool:
            found.append(self.house.more(plugin_name(self.driver)))
            return bool(found[-1]["State"] == "ready")

        self._until(is_running, "the plugin runs")
        return found[-1]

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait, whatever is down just then."""

        def is_met() -> bool:
            try:
                return condition()
            except (OSError, http.client.HTTPException, Refused, ValueError):
                return False

        wait_until(is_met, what, limit(60))

    # workers

    def _repeat(self, owner: str, act: Callable[[str], None]) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            began = time.monotonic()
            try:
                act(f"{owner}{number}")
                self.done[owner] += 1
            except (Failed, OSError, AssertionError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
                self.failures.append(
                    Failure(f"{owner}{number}", self._step.started, time.monotonic(), str(error)[-400:])
                )
                time.sleep(0.1)
            self.longest[owner] = max(
                self.longest.get(owner, (0.0, "")), (time.monotonic() - began, f"{owner}{number}")
            )

    def _container(self, command: Podman | Docker, name: str) -> None:
        has_failed = True
        self._do(command, "volume", "create", f"--driver={self.driver.name}", name)
        try:
            self._run(command, name, f"echo {name} >/mnt/a; cat /mnt/a")
            self._check(self.driver.data / name / "a", f"{name}\n")
            # it may get the placeholder of a dead mount, which no data can be written to (row P11a)
            self._run(command, name, "cat /mnt/a || echo lost >/mnt/lost")
            has_failed = False
        finally:
            failed = self._step.started
            try:
                self._do(command, "volume", "rm", name)
            except (Failed, subprocess.TimeoutExpired) as error:
                started, until = self._step.started, time.monotonic()
                self.failures.append(Failure(name, started, until, str(error)[-400:], is_consequence=has_failed))
            self._step.started = failed

    def _run(self, command: Podman | Docker, name: str, script: str) -> None:
        self._step.started = time.monotonic()
        printed = command.run("-v", f"{name}:/mnt", script=script)
        assert printed == f"{name}\n", printed

    def _do(self, command: Podman | Docker, *words: str) -> None:
        self._step.started = time.monotonic()
        command(*words)

    def _podman(self, name: str) -> None:
        self._container(self.consumers.podman, name)

    def _docker(self, name: str) -> None:
        self._container(self.consumers.docker, name)

    def _program(self, name: str) -> None:
        """As a program that speaks the protocol; and the volume that is mounted all the time."""
        path = Path(self._mounted("always", "soak"))
        self._step.started = time.monotonic()
        text = f"{name}\n" * 100
        (path / name).write_text(text)
        assert (path / name).read_text() == text
        self._check(self.driver.data / "always" / name, text)
        (path / name).unlink()
        assert self._mounted("always", name) == str(path)
        self._call("Unmount", f'{{"Name": "always", "ID": "{name}"}}')
        time.sleep(0.05)

    def _mounted(self, volume: str, id: str) -> str:
        return str(json.loads(self._call("Mount", f'{{"Name": "{volume}", "ID": "{id}"}}'))["Mountpoint"])

    def _call(self, verb: str, body: str) -> bytes:
        self._step.started = time.monotonic()
        status, answer = self.driver.post(f"/VolumeDriver.{verb}", body.encode())
        if status != 200:
            raise Failed((verb, body), status, answer.decode(errors="replace"))
        return answer

    def _check(self, path: Path, expected: str) -> None:
        if not path.exists() or path.read_text() != expected:
            self.lost.append(str(path))


def _kill(pid: int) -> float:
    """Kill a process that may be gone, and return the time at which it had exited."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            select.select([descriptor], [], [], limit(10))
        finally:
            os.close(descriptor)
    return time.monotonic()
