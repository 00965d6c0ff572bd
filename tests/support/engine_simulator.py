"""Random lives of a few plugins under a real engine on a host in memory, each of them a function of its seed.

Users request operations all at once, plugins crash, refuse, hang and ignore signals, containerd becomes unavailable,
the engine is killed between any two of its steps. At the end everything works again for long enough, and then state and
desired state agree.
"""

import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from moorage import errors
from moorage.engine.changes.values import PolicyChange
from moorage.engine.engine import Engine
from moorage.engine.lifecycle import State
from support.engine_world import Script, World
from support.virtual_time import run_in_virtual_time

PLUGINS = 3
STEPS = 30
SETTLED_SECONDS = 600.0
"""Longer than the longest pause, the longest stop and the longest start together."""

REMOVED = "removed"
Desired = bool | str


class Violation(AssertionError):
    """State and desired state do not agree."""


class Simulation:
    """One schedule."""

    def __init__(self, seed: int, base: Path, log: Callable[[str], None] | None = None) -> None:
        self._random = random.Random(seed)
        random.seed(seed)  # the engine's own draws
        self._log = log
        self.world = World(base)
        self._names = [self.world.record(number).name for number in range(1, PLUGINS + 1)]
        self._desired: dict[str, set[Desired]] = {name: {False} for name in self._names}
        """What a plugin may be in the end: what was answered last, and what was requested since and not answered."""
        self._pending = dict.fromkeys(self._names, 0)
        self._requests = dict.fromkeys(self._names, 0)
        self._ids = {name: self.world.id(number) for number, name in enumerate(self._names, 1)}

    async def play(self) -> None:
        """Raises: Violation."""
        try:
            for _ in range(self._random.randint(1, 4)):
                self.world.host.is_unavailable = False  # an engine comes up only with its containerd
                async with self.world.run() as engine:
                    await self._live(engine)
            self._heal()
            async with self.world.run() as engine:
                with anyio.move_on_after(SETTLED_SECONDS):
                    await self._until_settled(engine)
                self._judge(engine)
        finally:
            self.world.close()

    async def _live(self, engine: Engine) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(self._random.randint(1, STEPS)):
                words, step = self._draw(engine)
                self._say(words)
                tasks.start_soon(step)
                await anyio.sleep(self._random.choice((0, 0.001, 0.01, 0.05, 0.3, 2, 40)))
            tasks.cancel_scope.cancel()

    def _draw(self, engine: Engine) -> tuple[str, Callable[[], Coroutine[Any, Any, None]]]:
        name = self._random.choice(self._names)
        force = self._random.random() < 0.5
        steps: dict[str, tuple[float, Callable[[], Awaitable[object]]]] = {
            "enable": (4, lambda: self._request(name, True, False, lambda: engine.enable(name, 5.0))),
            "disable": (3, lambda: self._request(name, False, None, lambda: engine.disable(name, force=force))),
            "restart": (1, lambda: engine.restart(name)),
            "set": (1, lambda: engine.set(name, ["A=1"], [])),
            "policy": (1, lambda: engine.set_policy(name, PolicyChange("on-failure" if force else "always"))),
            "hold": (1, lambda: engine.acquire(name, "somebody", is_attached=force)),
            "remove": (0.3, lambda: self._request(name, REMOVED, None, lambda: engine.remove(name, force=force))),
            "crash": (4, lambda: self._crash(name)),
            "script": (2, lambda: self._rewrite(name)),
            "containerd": (1, self._switch),
            "removals": (1, self._slow_removals),
            "stop all": (0.2, engine.stop_all),
        }
        kind = self._random.choices(list(steps), [weight for weight, _ in steps.values()])[0]
        act = steps[kind][1]

        async def step() -> None:
            with suppress(errors.MoorageError):
                await act()

        return f"{kind} {name}{' force' if force else ''}", step

    async def _request(
        self, name: str, desired: Desired, otherwise: Desired | None, act: Callable[[], Awaitable[object]]
    ) -> None:
        """Ask for it, and note what may be from now on. One answer at a time says for certain what is."""
        self._requests[name] += 1
        self._pending[name] += 1
        number, is_alone = self._requests[name], self._pending[name] == 1
        self._desired[name] |= {desired, False} if desired is REMOVED else {desired}  # a removal disables first
        try:
            await act()
        except errors.Conflict:
            raise
        except errors.MoorageError:
            if otherwise is not None and is_alone and number == self._requests[name]:
                self._settle(name, otherwise)
            raise
        else:
            if is_alone and number == self._requests[name]:
                self._settle(name, desired)
        finally:
            self._pending[name] -= 1

    def _settle(self, name: str, desired: Desired) -> None:
        # a started removal continues, whatever was answered
        self._desired[name] = {desired} | (self._desired[name] & {REMOVED})

    async def _crash(self, name: str) -> None:
        for id in self.world.host.alive(self._ids[name]):
            self.world.host.end(id, self._random.choice((0, 1, 137)))

    async def _rewrite(self, name: str) -> None:
        self.world.host.scripts[self._ids[name]] = self._random.choice(list(Script))

    async def _switch(self) -> None:
        self.world.host.is_unavailable = not self.world.host.is_unavailable

    async def _slow_removals(self) -> None:
        self.world.host.removal_seconds = self._random.choice((0, 0.03, 5, 100))

    def _heal(self) -> None:
        host = self.world.host
        host.is_unavailable, host.removal_seconds = False, 0.03
        host.scripts.clear()
        for container in host.containers.values():
            container.script = Script.LISTENS if "cannot be killed" in container.script.value else container.script

    async def _until_settled(self, engine: Engine) -> None:
        while any(self._disagreement(engine, name) for name in self._names):  # noqa: ASYNC110 - by the clock
            await anyio.sleep(1)

    def _judge(self, engine: Engine) -> None:
        for name in self._names:
            if wrong := self._disagreement(engine, name):
                raise Violation(f"{name}: {wrong}")
        known = {plugin.id for plugin in engine.list()}
        orphans = [it.id for it in self.world.host.containers.values() if it.owner not in known]
        images = {f"image-{number}" for number, name in enumerate(self._names, 1) if self._ids[name] in known}
        if orphans or self.world.host.images != images:
            raise Violation(f"left behind: containers {orphans}, images {self.world.host.images - images}")

    def _disagreement(self, engine: Engine, name: str) -> str:
        """What is wrong with a plugin now, as text; empty where nothing is."""
        try:
            view = engine.get(name)
        except errors.NotFound:
            if REMOVED not in self._desired[name]:
                return "removed, which nobody asked for"
            return "removed, but its record is there" if not self.world.store.is_free(self._ids[name]) else ""
        alive = self.world.host.alive(view.id)
        record = next(each for each in self.world.store.load().records if each.id == view.id)
        if record.enabled != view.enabled:
            return f"enabled is {view.enabled}, on disk {record.enabled}"
        if view.enabled not in self._desired[name]:
            return f"enabled is {view.enabled}, and what users were told allows only {self._desired[name]}"
        if view.state is State.READY:
            return (
                "" if view.enabled and alive == [record.container] else f"ready, enabled {view.enabled}: runs {alive}"
            )
        if view.state is State.DISABLED and any(it.owner == view.id for it in self.world.host.containers.values()):
            return "disabled, but a container of it exists"
        if view.state is State.DISABLED:
            return "disabled, but runs" if alive else "disabled, but enabled" if view.enabled else ""
        if view.state is State.FAILED:
            is_over = view.policy.restarts.value == "on-failure" and view.last_exit and view.last_exit.code == 0
            return "" if is_over and not alive else "failed for no reason"
        return f"it is {view.state.value} for ever"

    def _say(self, text: str) -> None:
        if self._log is not None:
            self._log(f"{anyio.current_time():10.3f} {text}")


def play_many(seeds: range, base: Path) -> list[tuple[int, str]]:
    """The seeds whose lives broke a promise, and how."""
    failures = []
    for seed in seeds:
        try:
            run_in_virtual_time(Simulation(seed, base / str(seed)).play)
        except BaseExceptionGroup as group:
            failures.append((seed, str(_first(group))))
        except Exception as error:  # noqa: BLE001 - an engine that breaks is reported like a broken promise
            failures.append((seed, repr(error)))
    return failures


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
