"""What is done with one plugin: each method is a job of that plugin's inbox, so they come one after another."""

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from moorage import errors
from moorage._lib.inbox import Inboxes
from moorage._lib.threads import run_blocking
from moorage.engine.availability import Availability
from moorage.engine.consent import Consent, granted_of
from moorage.engine.events import EventLog
from moorage.engine.lifecycle import Event, State, after_end, back_off, move
from moorage.engine.plugin import Plugin, Run
from moorage.engine.registry import Registry
from moorage.engine.running import bring_down, bring_up, remove_strays
from moorage.engine.store import Store
from moorage.engine.values import LastExit
from moorage.executor import Exit
from moorage.host.beneath import remove_tree
from moorage.plugins import NO_OVERRIDES, apply_settings
from moorage.timeouts import Timeouts

__all__ = ("AWAY", "Job", "Work", "check_unused", "last_exit_of", "logged", "told")

log = logging.getLogger(__name__)

Job = Callable[[], Awaitable[None]]

AWAY = 1.0
"""Seconds between two tries that fail because containerd is away: it may be back at any time."""
_REMOVE_AGAIN = 10.0  # seconds between two tries of a removal that something stands in the way of


class Work(Availability):
    """The jobs, and what they share."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        events: EventLog,
        tasks: TaskGroup,
        timeouts: Timeouts,
        consent: Consent | None = None,
    ) -> None:
        super().__init__(timeouts)
        self.store = store
        self.registry = registry
        self.events = events
        self.consent = consent or Consent()
        self.inboxes: Inboxes[str] = Inboxes(tasks)
        self.hurry: anyio.Event | None = None
        """Set where a shutdown is to kill plugins instead of waiting for them."""
        self._tasks = tasks

    def tell(self, plugin: Plugin, action: str, *, name: str = "", **attributes: str) -> None:
        """Note an event of a plugin, under the name that the caller used."""
        self.events.tell(action, plugin.id, name or plugin.name, **attributes)

    async def save(self, plugin: Plugin, **fields: object) -> None:
        """Change these fields, on disk first. Raises: Unavailable, and then nothing is changed."""
        record = plugin.change(**fields)
        await run_blocking(lambda: self.store.save(record))
        plugin.record = record

    async def set(self, plugin: Plugin, assignments: Sequence[str], secrets: Sequence[str]) -> None:
        """The user's set. Raises: Conflict, Invalid; Denied for what the host's policy is against."""
        record, config = plugin.record, plugin.config
        if record.enabled or plugin.state is not State.DISABLED:
            raise errors.Conflict("cannot set on an active plugin, disable plugin before setting")
        made = apply_settings(config, record.overrides, assignments, secrets=secrets)
        named = apply_settings(config, NO_OVERRIDES, assignments, secrets=secrets)
        granted = self.consent.widen(config, made, named, granted_of(record, config))
        await run_blocking(lambda: self.consent.check_policy_now(config, made, granted.attended))
        await self.save(plugin, overrides=made, **granted.as_fields())

    # starting

    async def enable(self, plugin: Plugin, name: str, within: float) -> None:
        """The user's enable. Raises: Conflict; why it did not come up, and then it is disabled again."""
        if plugin.record.enabled or plugin.state is not State.DISABLED:
            why = "enabled" if plugin.record.enabled else plugin.state.value
            raise errors.Conflict(f"plugin already enabled: plugin {plugin.name} is {why}")
        self.need_machinery()
        plugin.is_asked = True
        try:
            patience = within or self.timeouts.ready
            failure = await self.start(plugin, patience, failures=0, restarts=0, last_exit=None)
            if failure is not None:
                await self._refuse(plugin, failure)
                raise told(failure, f"cannot enable plugin {plugin.name}: {failure}") from failure
        finally:
            plugin.is_asked = False
        self.tell(plugin, "enable", name=name)
        self.tell(plugin, "ready")

    async def restart(self, plugin: Plugin) -> None:
        """The user's restart. Raises: Conflict; Denied; why it did not come up, and then it is tried again."""
        if not plugin.record.enabled:
            raise errors.Conflict(f"cannot restart plugin {plugin.name}: it is disabled")
        self.need_machinery()
        # what would be refused is refused while it runs
        await run_blocking(lambda: self.consent.check_now(plugin.name, plugin.record, plugin.config))
        await self.stop(plugin)
        failure = await self.start(plugin, self.timeouts.ready, failures=0)
        if failure is not None:
            await self.failed(plugin, failure, tells_first=True)
            raise told(failure, f"cannot restart plugin {plugin.name}: {failure}; it is tried again") from failure
        if plugin.state is State.STARTING:
            raise errors.Conflict(f"cannot restart plugin {plugin.name}: it was told to stop while it started")
        self.tell(plugin, "restart")
        self.tell(plugin, "ready")

    async def start_again(self, plugin: Plugin, **fields: object) -> None:
        """A start that nobody waits for: at the start of the engine, after an end, after a pause."""
        is_due = plugin.record.enabled and plugin.state in (State.DISABLED, State.RESTARTING)
        if not is_due or plugin.stops:
            return
        failure = await self.start(plugin, self.timeouts.ready, **fields)
        if failure is not None:
            plugin.record = plugin.change(**fields)  # known in memory anyway, also where the disk did not take it
            await self.failed(plugin, failure)
        elif plugin.is_ready:
            self.tell(plugin, "ready")

    async def start(self, plugin: Plugin, within: float, **fields: object) -> errors.MoorageError | None:
        """Take it from its present state to ready; why that failed, None also where somebody stopped it meanwhile."""
        plugin.move(Event.START)
        failure: errors.MoorageError | None = None
        plugin.starting = anyio.CancelScope()
        try:
            with plugin.starting:
                machinery = self.need_machinery()
                await self.save(plugin, run=plugin.record.run + 1, enabled=True, next_try_at=None, **fields)
                # what an earlier start could not end must be gone before another one uses the same root
                await bring_down(plugin, machinery, self.timeouts, at_once=True, keep_places=True)
                await remove_strays(plugin, machinery)
                await bring_up(plugin, machinery, self.consent, within, self._teller(plugin))
                plugin.move(Event.ACCEPTED)  # no await between this and the last look at the run's end
        except errors.MoorageError as error:
            failure = error
        except OSError as error:
            failure = errors.MoorageError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        finally:
            plugin.starting = None
        if plugin.state is State.STARTING and failure is None and plugin.is_asked:
            failure = _CutOff("it was told to stop while it started")
        return failure

    def _teller(self, plugin: Plugin) -> Callable[..., None]:
        return lambda action, **attributes: self.tell(plugin, action, **attributes)

    async def _refuse(self, plugin: Plugin, failure: errors.MoorageError) -> None:
        """Undo a start that the user asked for: nothing of it is left, and it is disabled."""
        run, last = plugin.run, _last_exit(plugin.run, str(failure))
        plugin.move(Event.REFUSED)
        try:
            await self._bring_down(plugin, at_once=True)
            plugin.move(Event.STOPPED)
        except errors.MoorageError as error:  # the first failure is the one to tell
            log.error("plugin %s: %s", plugin.name, error)
        await self._save_or_log(plugin, enabled=False, last_exit=last)
        if isinstance(failure, _CutOff):
            return
        if run is not None:
            self._tell_death(plugin, _last_exit(run, ""))
        self.tell(plugin, "failed", error=str(failure).partition("\n")[0])

    async def failed(self, plugin: Plugin, failure: errors.MoorageError, *, tells_first: bool = False) -> None:
        """Undo a start, and plan the next one, or make it at once; ``tells_first``: somebody waits for the answer."""
        run, last = plugin.run, _last_exit(plugin.run, str(failure))
        log.warning("plugin %s does not come up: %s", plugin.name, failure)
        try:
            await self._bring_down(plugin, at_once=True, keep_places=True)
        except errors.Unavailable as error:
            failure = error
            log.warning("plugin %s: %s", plugin.name, error)
        if run is not None and run.exit is not None:
            self._tell_death(plugin, _last_exit(run, ""))
        if isinstance(failure, errors.Unavailable):
            plugin.become(replace(plugin.life, state=move(plugin.life, Event.ENDED).state))
            await self._plan(plugin, AWAY)
        else:
            await self.ended(plugin, last, is_failure=True, tells_first=tells_first)

    # ends

    async def run_ended(self, plugin: Plugin, run: Run) -> None:
        """The executor told of the end of a run. One that a job waits for is that job's."""
        if plugin.run is not run or run.exit is None:
            return
        if plugin.state is State.STOPPING:  # it would not end when it was told to, and now it has
            await self.stop(plugin)
            await self.start_again(plugin)  # where a restart was asked for: a disable has changed the wish
        if plugin.state is not State.READY:
            return
        plugin.run = None
        last = _last_exit(run, "")
        self._tell_death(plugin, last)
        await self.ended(plugin, last, is_failure=last.code != 0)

    def _tell_death(self, plugin: Plugin, last: LastExit) -> None:
        attributes = {"code": "" if last.code is None else str(last.code), "oom": str(last.oom).lower()}
        self.tell(plugin, "die", **attributes, **({"signal": last.signal} if last.signal else {}))

    async def ended(self, plugin: Plugin, last: LastExit, *, is_failure: bool, tells_first: bool = False) -> None:
        """It ended by itself: start it again, at once or after a pause, or give up.

        With ``tells_first`` this returns before it is started.
        """
        seconds = plugin.ready_seconds()
        life = after_end(plugin.life, plugin.record.policy, is_failure=is_failure, ready_seconds=seconds)
        plugin.become(life)
        if life.state is not State.RESTARTING:
            await self._save_or_log(plugin, last_exit=last, failures=life.failures)
            self.tell(plugin, "failed")
            return
        fields = {"last_exit": last, "failures": life.failures, "restarts": plugin.record.restarts + 1}
        pause = back_off(life.failures) * random.uniform(0.5, 1.0)
        if pause or tells_first:
            await self._plan(plugin, pause, **fields)
        else:
            self.tell(plugin, "restart")
            await self.start_again(plugin, **fields)

    async def _plan(self, plugin: Plugin, pause: float, **fields: object) -> None:
        """Start it again after a pause, which a disable ends."""
        scope = plugin.waiting = anyio.CancelScope()
        at = datetime.now(UTC) + timedelta(seconds=pause)
        await self._save_or_log(plugin, next_try_at=at, **fields)
        self.tell(plugin, "backoff", seconds=f"{pause:.3f}")

        async def start() -> None:
            self.tell(plugin, "restart")
            await self.start_again(plugin)

        async def wait() -> None:
            with scope:
                await anyio.sleep(pause)
                if plugin.waiting is scope:
                    plugin.waiting = None
                    self.inboxes.put(plugin.id, logged(plugin, start))

        self._tasks.start_soon(wait)

    async def _save_or_log(self, plugin: Plugin, **fields: object) -> None:
        """What is known in memory anyway must not stop a restart where the disk is full."""
        try:
            await self.save(plugin, **fields)
        except errors.Unavailable as error:
            log.error("%s", error)
            plugin.record = plugin.change(**fields)

    # stopping

    async def disable(self, plugin: Plugin, name: str, *, force: bool, cuts_off: bool) -> None:
        """The user's disable, which perhaps cut a start off.

        Raises: Conflict; Unavailable for a process that does not end (it stays stopping).
        """
        if plugin.state is not State.STARTING:  # such a start was cut off for this, after the same look
            check_unused(plugin, force=force)
        if not plugin.record.enabled and plugin.state is State.DISABLED:
            if cuts_off:  # the start that somebody asked for has undone itself
                self.tell(plugin, "disable", name=name)
                return
            raise errors.Conflict(f"plugin is already disabled: plugin {plugin.name} found but disabled")
        await self.save(plugin, enabled=False, next_try_at=None, failures=0, holders=())
        plugin.detach_all()
        await self.stop(plugin)
        self.tell(plugin, "disable", name=name)

    async def go_on(self, plugin: Plugin) -> None:
        """Take up again what was cut off for a stop that was then refused."""
        if plugin.record.enabled and plugin.state is State.STARTING:
            await self.failed(plugin, errors.Unavailable("it was told to stop, which was refused then"))
        elif plugin.record.enabled and plugin.state is State.RESTARTING:
            await self._plan(plugin, AWAY)

    async def stop(self, plugin: Plugin) -> None:
        """End it, whatever it is doing, and remove what was made for it; what the user wants is not changed.

        An engine that ends does not wait for it: the next one finds the rest.
        """
        plugin.interrupt()
        plugin.move(Event.STOP)
        await self._bring_down(plugin)
        plugin.move(Event.STOPPED)

    async def _bring_down(self, plugin: Plugin, *, at_once: bool = False, keep_places: bool = False) -> None:
        try:
            await bring_down(
                plugin, self.machinery, self.timeouts, at_once=at_once, keep_places=keep_places, hurry=self.hurry
            )
        except errors.MoorageError as error:
            plugin.problem = str(error)
            raise
        plugin.problem = ""

    async def remove(self, plugin: Plugin, name: str, *, force: bool) -> None:
        """The user's remove. Raises: Conflict; Unavailable where something stands in the way (tried again then)."""
        if plugin.state is not State.STARTING:
            check_unused(plugin, force=force)
        if plugin.record.enabled and not force:
            raise errors.Conflict(f"plugin {plugin.name} is enabled")
        self.need_machinery()
        if plugin.state is not State.DISABLED and plugin.state is not State.REMOVING:
            await self.save(plugin, enabled=False, holders=())
            await self.stop(plugin)
        await self.save(plugin, removing=True, enabled=False)
        plugin.move(Event.REMOVE)
        await self.erase(plugin)
        self.tell(plugin, "remove", name=name)

    async def erase(self, plugin: Plugin) -> None:
        """Remove all that is this plugin's, its record last. Raises: Unavailable, and it is tried again by itself."""
        try:
            await self._erase(plugin)
        except (errors.MoorageError, OSError) as error:
            plugin.problem = f"cannot remove plugin {plugin.name} yet, it is tried again: {error}"
            self._tasks.start_soon(self._erase_later, plugin)
            raise errors.Unavailable(plugin.problem) from error

    async def _erase(self, plugin: Plugin) -> None:
        machinery = self.need_machinery()
        await remove_strays(plugin, machinery)
        await run_blocking(plugin.places.erase)
        previous = plugin.record.previous  # there, where a new version was tried out and could not be taken back
        for image in (plugin.record.image, *([previous.image] if previous is not None else [])):
            try:
                await machinery.delete_image(image, plugin.id)
            except errors.NotFound:
                pass
        await remove_tree(plugin.log.directory)
        await run_blocking(lambda: self.store.forget(plugin.id))
        self.registry.discard(plugin)

    async def _erase_later(self, plugin: Plugin) -> None:
        await anyio.sleep(_REMOVE_AGAIN)

        async def job() -> None:
            if self.registry.find_id(plugin.id) is plugin:  # else somebody asked again, and it is gone
                await self.erase(plugin)

        self.inboxes.put(plugin.id, logged(plugin, job))


class _CutOff(errors.Conflict):
    """A start that somebody stopped."""


def told(failure: errors.MoorageError, text: str) -> errors.MoorageError:
    """A failure in words for the user, of a kind that is true of the plugin: what containerd did not find, or found in
    its way, is no plugin that is unknown or in the wrong state.
    """
    if isinstance(failure, _CutOff):
        return errors.Conflict(text)
    is_inner = isinstance(failure, errors.NotFound | errors.Conflict)
    return errors.MoorageError(text) if is_inner else type(failure)(text)


def check_unused(plugin: Plugin, *, force: bool) -> None:
    """Raises: Conflict naming who uses it, unless forced."""
    if not force and (holders := plugin.holders()):
        owners = ", ".join(sorted({holder.owner for holder in holders}))
        raise errors.Conflict(f"plugin {plugin.name} is in use by {owners}")


def logged(plugin: Plugin, job: Job) -> Job:
    """The job for an inbox with nobody who waits: what it raises goes to the log."""

    async def run() -> None:
        try:
            await job()
        except errors.MoorageError as error:
            log.warning("plugin %s: %s", plugin.name, error)
        except Exception:
            log.exception("a job of plugin %s failed", plugin.name)

    return run


def last_exit_of(exit: Exit, error: str = "") -> LastExit:
    """An exit as the record keeps it."""
    return LastExit(exit.code, exit.signal, exit.oom, exit.exited_at, error)


def _last_exit(run: Run | None, error: str) -> LastExit:
    if run is not None and run.exit is not None:
        return last_exit_of(run.exit, error)
    return LastExit(at=datetime.now(UTC), error=error)
