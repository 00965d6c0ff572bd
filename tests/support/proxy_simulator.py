"""A shell, a plugin, consumers and a disk around the core of one plugin, without processes: every fault at every step.

The random choices are those of a seed. What is checked at each step raises AssertionError.
"""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from moorage.proxy.core import calls
from moorage.proxy.core.actions import Abort, Action, Call, Forget, Forward, Notify, Release, Reply, Save, Verify
from moorage.proxy.core.ledger import Ledger, load
from moorage.proxy.core.plugin import PluginCore
from moorage.proxy.protocol import PathRule, PluginTable, ProxyState, PublishOptions

__all__ = ("EPOCH", "Simulation", "table")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_PATHS = (calls.MOUNT,) * 4 + (calls.UNMOUNT,) * 3 + (calls.GET, calls.PATH, calls.LIST, calls.CREATE, calls.READ_LOGS)
_AT_ONCE = 4


def table(state: ProxyState = "ready", run: int = 1, **options: Any) -> PluginTable:
    return PluginTable(
        id="a" * 64,
        name="vol:latest",
        types=("docker.volumedriver/1.0",),
        state=state,
        run=run,
        runtime="/run/vol",
        socket="vol.sock",
        published=("/run/docker/plugins/vol.sock",),
        pid=100 + run if state == "ready" else 0,
        paths=(PathRule("/mnt", "/host/mnt", "propagated"),),
        options=PublishOptions(**options),
    )


class Simulation:
    """One run of a story. ``belief`` is what consumers know to be mounted; of other keys they cannot be sure.

    ``forgotten`` is what dockerd has returned, whatever the answer was, unless the plugin itself refused it.
    """

    def __init__(self, seed: int, *, replays: bool = True) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.disk = Ledger().encode()
        self.table = table(at_once=_AT_ONCE, replays=replays)
        self.process_run: int | None = 1
        self.plugin_mounts: set[tuple[str, str]] = set()
        self.calls = 0
        self.is_disk_full = False
        self.is_unsaved = False
        self.forgotten: set[tuple[str, str]] = set()
        self.start()

    def start(self) -> None:
        """A new proxy with what is on the disk; every open connection of the former one is closed."""
        for call in getattr(self, "open", {}).values():
            self.doubt(call)
        if self.is_unsaved:
            self.forgotten.clear()
        self.open: dict[int, Call] = {}
        self.returned: set[int] = set()
        self.forwards: dict[int, Forward] = {}
        self.checks: dict[int, Verify | Release] = {}
        self.streams: dict[int, int] = {}
        self.belief: dict[tuple[str, str], bool] = getattr(self, "belief", {})
        self.core = PluginCore(self.table, load(self.disk), EPOCH)
        self.perform(self.core.configure(self.table, self.now))

    # what the shell does

    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Save):
                self._save(action)
            elif isinstance(action, Forward):
                self._forward(action)
            elif isinstance(action, Reply):
                self._reply(action)
            elif isinstance(action, Abort):
                del self.forwards[action.id]
                self.streams.pop(action.id, None)
            elif isinstance(action, Verify | Release):
                self.checks[action.id] = action
            elif isinstance(action, Notify) and action.action == "undo-failed":
                self.forgotten.discard((action.attributes["volume"], action.attributes["id"]))
            else:
                assert isinstance(action, Notify | Forget)

    def _save(self, action: Save) -> None:
        if self.random.random() < 0.03:
            self.is_disk_full = self.is_unsaved = (
                True  # a proxy that is killed before it can save is not to know better
            )
            self.perform(action.otherwise)
            self.is_disk_full = False
            self.perform(self.core.unsaved(action, self.now))
            return
        self.disk, self.is_unsaved = action.ledger, False
        self.perform(action.then)

    def _forward(self, action: Forward) -> None:
        assert self.table.state == "ready"
        self.forwards[action.id] = action
        counted = [each for each in self.forwards.values() if each.path != calls.READ_LOGS]
        assert len(counted) <= _AT_ONCE
        if action.call is not None:
            assert action.call in self.open
            self._expect_replayed(action)

    def _expect_replayed(self, action: Forward) -> None:
        """A call for a volume goes to a run only after the volume's mounts were made again there, or have failed."""
        if action.body is None or action.path in (calls.LIST, calls.CREATE) or not self.table.options.replays:
            return
        volume = calls.arguments(action.path, action.body).volume
        for mount in self.core.news().mounts:
            key = mount.volume, mount.id
            if mount.volume == volume and self.belief.get(key) and self.process_run == self.table.run:
                assert key in self.plugin_mounts or mount.problem, (action, mount)

    def _reply(self, action: Reply) -> None:
        call = self.open.pop(action.call)  # a second reply has no call
        if call.path not in (calls.MOUNT, calls.UNMOUNT):
            return
        assert call.body is not None
        key = _key(call)
        if self.table.options.replays and call.id in self.returned and not self._is_disputed(key):
            assert b"not mounted" not in action.answer.body, "a plugin is to unmount what its run never mounted"
        if call.path == calls.MOUNT and not action.answer.is_failure:
            saved = load(self.disk).find(key)
            assert saved is not None, key
            assert saved.phase == "mounted"
        if action.answer.is_failure or self.is_disk_full or self._is_disputed(key):
            self.doubt(call)
        elif call.path == calls.MOUNT:
            self.belief[key] = True
        else:
            self.belief[key] = False

    def _is_disputed(self, key: tuple[str, str]) -> bool:
        """Whether another call about this mount is under way, maybe of a consumer that has left."""
        others: list[Call | Forward] = [*self.open.values(), *self.forwards.values()]
        return bool(self.checks) or any(
            each.path in (calls.MOUNT, calls.UNMOUNT) and each.body and _key(each) == key for each in others
        )

    def doubt(self, call: Call) -> None:
        """The consumer of this call cannot know what became of it."""
        if call.path in (calls.MOUNT, calls.UNMOUNT):
            self.belief.pop(_key(call), None)

    # what happens

    def step(self) -> None:
        events = (
            (self.consumer_calls, 8), (self.consumer_leaves, 2), (self.plugin_answers, 10), (self.plugin_breaks, 1),
            (self.check_completes, 8), (self.time_passes, 4), (self.plugin_exits, 0.5), (self.engine_acts, 2),
            (self.proxy_is_killed, 0.3),
        )  # fmt: skip
        names, weights = zip(*events, strict=True)
        self.random.choices(names, weights)[0]()

    def consumer_calls(self) -> None:
        self.calls += 1
        path = self.random.choice(_PATHS)
        name, mount = self.random.choice("vw"), self.random.choice("123")
        fields = {"Name": name, "ID": mount} if path in (calls.MOUNT, calls.UNMOUNT) else {"Name": name}
        body = None if path == calls.READ_LOGS else msgspec.json.encode(fields)
        consumer = "podman (pid 1)" if mount == "3" else "dockerd (pid 2)"
        call = Call(self.calls, path, body, consumer)
        if path == calls.UNMOUNT:
            if self.belief.get((name, mount)) and not self._is_disputed((name, mount)):
                self.returned.add(call.id)
                if mount != "3":
                    self.forgotten.add((name, mount))
            self.doubt(call)  # until its answer
        elif path == calls.MOUNT:
            self.forgotten.discard((name, mount))
        self.open[call.id] = call
        self.perform(self.core.opened(call, self.now))

    def consumer_leaves(self) -> None:
        if self.open:
            call = self.open.pop(self.random.choice(list(self.open)))
            self.doubt(call)
            self.perform(self.core.left(call.id, self.now))

    def plugin_answers(self, *, is_healthy: bool = False) -> None:
        if not self.forwards or self.process_run is None:
            return
        action = self.forwards.pop(self.random.choice(list(self.forwards)))
        if action.body is None:
            self._stream(action)
            return
        status, body = 200, b"{}"
        fields = msgspec.json.decode(action.body)
        key = (fields.get("Name", ""), fields.get("ID", ""))
        if not is_healthy and self.random.random() < 0.1:
            status, body = 500, b'{"Err": "no"}'
        elif action.path == calls.MOUNT:
            self.plugin_mounts.add(key)
            inside = "/mnt" if is_healthy or self.random.random() < 0.95 else "/elsewhere"
            body = msgspec.json.encode({"Mountpoint": f"{inside}/{key[0]}"})
        elif action.path == calls.UNMOUNT:
            if key not in self.plugin_mounts:
                status, body = 500, b'{"Err": "not mounted"}'
            self.plugin_mounts.discard(key)
        if status != 200 and action.path == calls.UNMOUNT and action.call is not None:
            self.forgotten.discard(key)
        self.perform(self.core.answered(action.id, status, body, self.now))

    def _stream(self, action: Forward) -> None:
        """A stream starts, and is complete a moment later."""
        assert action.call is not None
        self.perform(self.core.started(action.id, self.now))
        self.open.pop(action.call)
        self.perform(self.core.finished(action.id, self.now))

    def plugin_breaks(self) -> None:
        """A connection breaks, before or after the plugin did what it was to do."""
        if self.forwards:
            action = self.forwards.pop(self.random.choice(list(self.forwards)))
            was_sent = self.random.random() < 0.7
            if was_sent:
                self._maybe_done(action)
            self.perform(self.core.broken(action.id, "broken", self.now, was_sent=was_sent))

    def _maybe_done(self, action: Forward) -> None:
        if action.body is not None and self.process_run is not None and self.random.random() < 0.5:
            fields = msgspec.json.decode(action.body)
            key = (fields.get("Name", ""), fields.get("ID", ""))
            if action.path == calls.MOUNT:
                self.plugin_mounts.add(key)
            elif action.path == calls.UNMOUNT:
                self.plugin_mounts.discard(key)

    def check_completes(self, *, is_healthy: bool = False) -> None:
        if self.checks:
            action = self.checks.pop(self.random.choice(list(self.checks)))
            problem = "bad" if not is_healthy and self.random.random() < 0.1 else ""
            if isinstance(action, Verify):
                point = action.outside if self.random.random() < 0.8 else ""
                self.perform(self.core.verified(action.id, problem, "" if problem else point, self.now))
            else:
                self.perform(self.core.released(action.id, problem, self.now))

    def time_passes(self) -> None:
        self.now += self.random.choice((0.01, 0.1, 1.0, 10.0))
        self.tick()

    def tick(self) -> None:
        if self.core.wake is not None and self.core.wake <= self.now:
            self.perform(self.core.tick(self.now))

    def plugin_exits(self) -> None:
        """The process exits; its connections break, and the proxy notices it before or after them."""
        if self.process_run is None:
            return
        run, self.process_run = self.process_run, None
        self.plugin_mounts.clear()
        is_first = self.random.random() < 0.5
        if is_first:
            self.perform(self.core.exited(run, self.now))
        for attempt in list(self.forwards):
            if attempt in self.forwards and self.random.random() < 0.9:
                del self.forwards[attempt]
                self.perform(self.core.broken(attempt, "reset", self.now, was_sent=self.random.random() < 0.7))
        if not is_first and self.random.random() < 0.8:
            self.perform(self.core.exited(run, self.now))

    def engine_acts(self) -> None:
        if self.process_run is None:
            states: tuple[ProxyState, ...] = ("starting", "ready", "ready", "disabled", "failed")
            state = self.random.choice(states)
            if state == "ready":
                self.plugin_starts()
                return
            self.configure(state, self.table.run)
        elif self.table.state != "ready" or self.random.random() < 0.2:
            self.configure("ready", self.process_run)

    def plugin_starts(self) -> None:
        self.process_run = self.table.run + 1
        self.plugin_mounts.clear()
        self.configure("ready", self.process_run)

    def configure(self, state: ProxyState, run: int) -> None:
        self.table = replace(self.table, state=state, run=run, pid=100 + run if state == "ready" else 0)
        self.perform(self.core.configure(self.table, self.now))

    def proxy_is_killed(self) -> None:
        for action in self.forwards.values():
            self._maybe_done(action)
        self.start()

    # the story's last page

    def recover(self) -> None:
        """Everything works again: after that no call is open, and what consumers have is what the plugin has."""
        self.random = _Steady()
        if self.process_run is None:
            self.plugin_starts()
        else:
            self.configure("ready", self.process_run)
        for _ in range(600):
            while self.forwards or self.checks:
                self.plugin_answers(is_healthy=True)
                self.check_completes(is_healthy=True)
            if self.core.wake is None:
                break
            self.now = max(self.now, self.core.wake)
            self.tick()
        else:
            raise AssertionError("it never rests")
        assert not self.open, self.open
        ledger = load(self.disk)
        assert {each.key for each in ledger.mounts} == {each.key for each in ledger.mounts if each.phase == "mounted"}
        known = {each.key for each in ledger.mounts if not each.problem}
        assert {key for key, is_mounted in self.belief.items() if is_mounted} <= known
        assert not {key for key, is_mounted in self.belief.items() if not is_mounted} & known
        assert not self.forgotten & known
        if self.table.options.replays:
            assert known <= self.plugin_mounts
            assert not self.forgotten & self.plugin_mounts


class _Steady(random.Random):
    """No more faults: the first of each choice, and no improbable event."""

    def random(self) -> float:
        return 0.5


def _key(call: Call | Forward) -> tuple[str, str]:
    assert call.body is not None
    found = calls.arguments(call.path, call.body)
    return found.volume, found.id
