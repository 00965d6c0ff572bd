"""One plugin of the proxy: carries out what its core decides, and reports to the core what happened."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from moorage.host.files import replace_file
from moorage.host.processes import open_process
from moorage.host.sockets import PluginSocket
from moorage.proxy import checks
from moorage.proxy.consumer import Exchange
from moorage.proxy.core.actions import Abort, Action, Call, Forget, Forward, Notify, Release, Reply, Save, Verify
from moorage.proxy.core.bounds import Budget
from moorage.proxy.core.ledger import Ledger, load
from moorage.proxy.core.plugin import PluginCore
from moorage.proxy.http import Lost
from moorage.proxy.plugin_calls import ConsumerLeft, PluginBroken, WholeCall, call_stream
from moorage.proxy.protocol import PluginNews, PluginTable, Report
from moorage.proxy.workers import Workers

__all__ = ("PluginShell", "ShellContext", "read_ledger")

log = logging.getLogger(__name__)

_MOST_ANSWER_BYTES = 4 * 1024 * 1024  # of an answer that is read whole: a list of some 20,000 volumes
_MOST_REPORTS = 1000
_MOST_CHECKS = 256
"""Checks of one plugin at the same time; each has a thread."""


class ShellContext:
    """What all plugins share."""

    def __init__(
        self, ledgers: Path, tasks: asyncio.TaskGroup, changed: Callable[[], None], exited: Callable[[], None]
    ) -> None:
        """``changed`` is called when there may be news for the engine, ``exited`` when a plugin has exited."""
        self.exited = exited
        self.ledgers = ledgers
        self.tasks = tasks
        self.changed = changed
        self.reports: deque[Report] = deque(maxlen=_MOST_REPORTS)
        """Those that no engine has received."""
        self.loop = asyncio.get_running_loop()
        self.calls = 0
        self.workers = Workers()

    def report(self, report: Report) -> None:
        """Report to the engine what happened."""
        self.reports.append(report)
        self.changed()

    def spawn(self, run: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run this; an error in it is logged, and ends nothing else."""
        return self.tasks.create_task(_guarded(run))


async def _guarded(run: Coroutine[Any, Any, None]) -> None:
    try:
        await run
    except Exception:
        log.exception("internal error")


def read_ledger(path: Path) -> Ledger:
    """A saved ledger; an empty one where there is none, or it is damaged."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return Ledger()
    except (OSError, msgspec.MsgspecError) as error:
        log.error("cannot read %s, which is ignored: %s", path, error)
        return Ledger()


class PluginShell:
    """Around one core."""

    def __init__(self, table: PluginTable, context: ShellContext) -> None:
        self._context = context
        self._loop = context.loop
        self._path = context.ledgers / f"{table.id}.json"
        epoch = datetime.now(UTC) - timedelta(seconds=self._loop.time())
        self._core = PluginCore(table, read_ledger(self._path), epoch)
        self._exchanges: dict[int, Exchange] = {}
        self._forwards: dict[int, asyncio.Task[None] | WholeCall] = {}
        self._calls: dict[Exchange, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._checks = 0
        self._process = -1
        """A descriptor of the plugin's process."""
        self._watched = 0, 0
        self._is_removed = False
        self.id = table.id
        self.configure(table)

    @property
    def table(self) -> PluginTable:
        """As the engine sent it last."""
        return self._core.table

    @property
    def lasting_table(self) -> PluginTable:
        """The table without a run that has exited, for a proxy that is started without an engine."""
        table = self._core.table
        has_exited = self._core.exited_run == table.run
        return replace(table, state="starting", pid=0) if has_exited and table.state == "ready" else table

    @property
    def is_listening(self) -> bool:
        """Whether the sockets for consumers exist."""
        return self._core.is_listening

    def news(self) -> PluginNews:
        """For the engine, without problems of its sockets."""
        return self._core.news()

    # the engine

    def configure(self, table: PluginTable) -> None:
        """The engine's table of this plugin."""
        self._socket = PluginSocket(Path(table.runtime), table.socket)
        self._perform(self._core.configure(table, self._loop.time()))
        self._context.changed()
        self._watch_process(table)

    def remove(self) -> None:
        """The plugin is not in the tables any more."""
        self._unwatch_process()
        self._perform(self._core.remove())
        self._is_removed = True
        if self._timer is not None:
            self._timer.cancel()

    def _watch_process(self, table: PluginTable) -> None:
        """Notice the exit of the plugin's process at once; the engine may not run."""
        if (table.run, table.pid) == self._watched:
            return
        self._unwatch_process()
        self._watched = table.run, table.pid
        if table.state == "ready" and table.pid > 0:
            try:
                process = open_process(table.pid)
            except OSError as error:
                log.warning("cannot watch process %d of plugin %s: %s", table.pid, table.name, error.strerror)
                return
            if process is None:
                self._exited(table.run)
                return
            self._process = process
            self._loop.add_reader(process, self._exited, table.run)

    def _unwatch_process(self) -> None:
        if self._process >= 0:
            self._loop.remove_reader(self._process)
            os.close(self._process)
            self._process = -1

    def _exited(self, run: int) -> None:
        self._unwatch_process()
        self._perform(self._core.exited(run, self._loop.time()))
        self._loop.call_soon(self._context.exited)

    # consumers

    def opened(self, exchange: Exchange, body: bytes | None) -> None:
        """A call has been read, of a stream its head."""
        self._context.calls += 1
        number = self._context.calls
        self._exchanges[number] = exchange
        self._calls[exchange] = number
        call = Call(number, exchange.path, body, exchange.consumer)
        self._perform(self._core.opened(call, self._loop.time()))

    def left(self, exchange: Exchange) -> None:
        """The consumer has left before the answer."""
        number = self._calls.pop(exchange, None)
        if number is not None:
            del self._exchanges[number]
            self._perform(self._core.left(number, self._loop.time()))

    def _reply(self, action: Reply) -> None:
        exchange = self._exchanges.pop(action.call, None)
        if exchange is not None:
            self._calls.pop(exchange, None)
            exchange.reply(action.answer)

    # actions

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Reply():
                    self._reply(action)
                case Forward():
                    self._forward(action)
                case Save():
                    self._save(action)
                case Abort():
                    if (task := self._forwards.pop(action.id, None)) is not None:
                        task.cancel()
                case Verify() | Release():
                    self._check(action)
                case Notify():
                    self._context.report(Report(self.id, action.action, action.attributes))
                case Forget():
                    self._path.unlink(missing_ok=True)
        self._schedule()

    def _schedule(self) -> None:
        """Have the core wake up when it wants to."""
        wake = self._core.wake if not self._is_removed else None
        if self._timer is not None:
            if not self._timer.cancelled() and wake is not None and self._timer.when() <= wake:
                return
            self._timer.cancel()
            self._timer = None
        if wake is not None:
            self._timer = self._loop.call_at(wake, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._core.tick(self._loop.time()))

    def _save(self, action: Save) -> None:
        """Written at once: the file is in a run-time directory, which is in memory."""
        try:
            replace_file(self._path, action.ledger)
        except OSError as error:
            log.error("cannot save %s: %s", self._path, error.strerror)
            self._perform(action.otherwise)
            self._perform(self._core.unsaved(action, self._loop.time()))
        else:
            self._context.changed()
            self._perform(action.then)

    def _check(self, action: Verify | Release) -> None:
        """Run in a thread of its own, as the file system of a plugin may hang."""

        def run() -> None:
            if isinstance(action, Verify):
                problem, mount_point = checks.verify(action)
            else:
                problem, mount_point = checks.release(action.paths), ""
            with suppress(RuntimeError):  # the proxy exits
                self._loop.call_soon_threadsafe(self._checked, action, problem, mount_point)

        self._checks += 1
        try:
            if self._checks > _MOST_CHECKS:
                raise RuntimeError(f"{_MOST_CHECKS} earlier checks have not returned")
            self._context.workers.submit(run)
        except RuntimeError as error:
            self._loop.call_soon(self._checked, action, str(error), "")

    def _checked(self, action: Verify | Release, problem: str, mount_point: str) -> None:
        self._checks -= 1
        now = self._loop.time()
        if isinstance(action, Verify):
            self._perform(self._core.verified(action.id, problem, mount_point, now))
        else:
            self._perform(self._core.released(action.id, problem, now))

    # calls to the plugin

    def _forward(self, action: Forward) -> None:
        exchange = self._exchanges.get(action.call) if action.call is not None else None
        if action.body is not None:
            self._forwards[action.id] = self._call_whole(action, action.body, exchange)
        elif exchange is not None:
            self._forwards[action.id] = self._context.spawn(self._forward_stream(action, exchange))

    def _call_whole(self, action: Forward, body: bytes, exchange: Exchange | None) -> WholeCall:
        budget = Budget(_MOST_ANSWER_BYTES, self.id)

        def answered(status: int, answer: bytes) -> None:
            budget.free()
            if self._forwards.pop(action.id, None) is not None:
                self._perform(self._core.answered(action.id, status, answer, self._loop.time()))

        def broken(error: PluginBroken) -> None:
            budget.free()
            self._report_broken(action, error)

        headers = exchange.headers if exchange is not None else []
        return WholeCall(
            self._socket, action.path, body, headers, reserve=budget.grow, answered=answered, broken=broken
        )

    def _report_broken(self, action: Forward, error: PluginBroken) -> None:
        if self._forwards.pop(action.id, None) is not None:
            self._perform(self._core.broken(action.id, str(error), self._loop.time(), was_sent=error.was_sent))

    async def _forward_stream(self, action: Forward, exchange: Exchange) -> None:
        def started() -> None:
            self._core.started(action.id, self._loop.time())

        exchange.unwatch()
        try:
            await call_stream(self._socket, action.path, exchange, started)
        except ConsumerLeft:
            exchange.is_reusable = False
            self.left(exchange)  # which aborts this attempt
            exchange.reply(None)
            return
        except Lost:
            exchange.is_reusable = False
        except PluginBroken as error:
            exchange.is_reusable = not error.was_sent
            exchange.watch()
            self._report_broken(action, error)
            return
        except asyncio.CancelledError:
            exchange.is_reusable = False
            exchange.reply(None)
            raise
        if self._forwards.pop(action.id, None) is not None:
            self._perform(self._core.finished(action.id, self._loop.time()))
        self._exchanges.pop(self._calls.pop(exchange, 0), None)
        exchange.reply(None)
