"""All decisions about one plugin's calls: events go in, actions come out. No I/O, no clock.

Times are instants of one monotonic clock. Each event returns what is to be done, in this order. Exactly one ``Reply``
comes for each call that was opened and not left, except that a stream which has started is completed by the shell.
"""

from datetime import datetime

from moorage import errors
from moorage.proxy.core import calls, offline
from moorage.proxy.core.actions import EXITED, Action, Call, Forget, Forward, Release, Reply, Save
from moorage.proxy.core.answers import Answer, failure, shorten
from moorage.proxy.core.calls import Arguments
from moorage.proxy.core.context import PluginContext
from moorage.proxy.core.jobs import Job, Stage
from moorage.proxy.core.ledger import Ledger
from moorage.proxy.core.mount_calls import MountCalls
from moorage.proxy.core.outcomes import Outcomes
from moorage.proxy.core.replays import Replays
from moorage.proxy.protocol import PluginNews, PluginTable

__all__ = ("MOST_CALLS", "MOST_RECORDED", "PluginCore")

MOST_CALLS = 4096
"""Open calls of one plugin; further ones fail at once."""
MOST_RECORDED = 4 * 1024 * 1024
"""Bytes of the ledger of one plugin, as it is saved; with more of them, nothing new is mounted or logged.

The engine gets the mounts of all plugins in one message, which must not be too long.
"""
_EXIT_GRACE = 1.0  # seconds in which an answer of a run that has exited is still read
_SAVE_AGAIN = 5.0  # seconds


class PluginCore:
    """One plugin of the tables."""

    def __init__(self, table: PluginTable, ledger: Ledger, epoch: datetime) -> None:
        """``epoch`` is when the monotonic clock was 0. Call ``configure`` next, with the same table."""
        self._context = PluginContext(table, ledger, epoch)
        self._mounts = MountCalls(self._context)
        self._replays = Replays(self._context)
        self._outcomes = Outcomes(self._context, self._mounts, self._replays)
        self._was_starting = False

    # what it is

    @property
    def table(self) -> PluginTable:
        """As it was configured last."""
        return self._context.table

    @property
    def exited_run(self) -> int | None:
        """The run whose process has exited, which the table does not say yet."""
        return self._context.exited_run

    @property
    def wake(self) -> float | None:
        """When ``tick`` is to be called, at the latest; None for never."""
        return self._context.wake

    @property
    def is_listening(self) -> bool:
        """Whether its sockets for consumers exist."""
        return offline.is_listening(self._context.table, self._context.ledger)

    def news(self) -> PluginNews:
        """For the engine, without problems of its sockets."""
        table, ledger = self._context.table, self._context.ledger
        return PluginNews(
            id=table.id,
            mounts=ledger.outstanding(),
            log_files=tuple(log.file for log in ledger.logs),
            is_answering=table.state == "disabled" and self.is_listening and bool(table.published),
            state=table.state,
            run=table.run,
            pid=table.pid,
        )

    # events of the engine and of the plugin's process

    def configure(self, table: PluginTable, now: float) -> list[Action]:
        """The engine's table of the plugin."""
        self._context.table = table
        if self._context.exited_run not in (None, table.run):
            self._context.exited_run = None
        return self._changed(now)

    def exited(self, run: int, now: float) -> list[Action]:
        """The process of a run has exited."""
        if run == self._context.table.run:
            self._context.exited_run = run
        return self._changed(now)

    def remove(self) -> list[Action]:
        """The plugin is in no table any more. No event has an effect after this."""
        context = self._context
        for job in context.jobs.all():
            context.abort(job)
            context.jobs.remove(job)
            if job.call is not None:
                context.emit(
                    Reply(job.call, failure(f"plugin {context.table.name} was removed or is not published any more"))
                )
        for entry in context.ledger.mounts:
            context.ledger.cover(entry)
        paths = tuple(path for points in context.ledger.covered.values() for path in points)
        if paths:
            context.emit(Release(context.jobs.number(), paths))
        context.emit(Forget())
        context.is_clean = True
        return self._flush()

    def _changed(self, now: float) -> list[Action]:
        context = self._context
        for entry in context.ledger.mounts:
            if entry.phase != "mounting" and not context.is_present(entry.run) and context.ledger.cover(entry):
                context.is_clean = False
        for job in context.jobs.all():
            if job.purpose != "call":
                # another run gets jobs of its own
                if not context.is_present(job.run) and not self._mounts.is_release(job):
                    context.abort(job)
                    self._replays.dropped(job)
            elif job.stage is Stage.WAITING or context.is_present(job.run) or self._mounts.is_release(job):
                pass
            elif job.stage is Stage.SETTLING or (context.is_ready and not job.has_started):
                context.abort(job)
                self._outcomes.lost(job, now)
            elif job.stage is Stage.FORWARDED and job.due is not None:
                job.due = min(job.due, now + _EXIT_GRACE)
                context.wake_at(job.due)
        return self._proceed(now)

    # events of consumers

    def opened(self, call: Call, now: float) -> list[Action]:
        """A consumer calls."""
        context = self._context
        if call.path == calls.ACTIVATE:
            if call.is_podman and context.ledger.note_podman(""):
                context.is_clean = False
            context.emit(Reply(call.id, Answer(200, calls.activation(context.table.types))))
            return self._flush()
        try:
            body = (call.body.strip() or b"{}") if call.body is not None else None
            arguments = calls.arguments(call.path, body) if body is not None else Arguments()
        except errors.Invalid as error:
            context.emit(Reply(call.id, failure(str(error), 400)))
            return self._flush()
        table = context.table
        if table.is_unhealthy and table.options.while_unhealthy == "fail" and call.path not in calls.RELEASES:
            context.emit(Reply(call.id, failure(f"plugin {table.name} is unhealthy", 503)))
            return self._flush()
        if len(context.jobs) >= MOST_CALLS:
            context.emit(Reply(call.id, failure(f"plugin {context.table.name} has {MOST_CALLS} unanswered calls", 503)))
            return self._flush()
        if call.path in calls.RECORDED and context.recorded_bytes > MOST_RECORDED:
            context.emit(Reply(call.id, failure(f"plugin {table.name} has too many mounts to record more", 503)))
            return self._flush()
        deadline = now + calls.time_limit(call.path, context.table.options.time_limits)
        job = Job(context.jobs.number(), call.path, body, arguments, purpose="call", deadline=deadline)
        context.jobs.add(job, call)
        context.wake_at(deadline)
        self._note(job, call)
        return self._proceed(now)

    def _note(self, job: Job, call: Call) -> None:
        """Record what the call itself says, whatever the answer will be."""
        ledger = self._context.ledger
        volume = job.arguments.volume
        if call.is_podman and volume and call.path != calls.REMOVE and ledger.note_podman(volume):
            self._context.is_clean = False
        if call.path == calls.UNMOUNT:
            self._mounts.note_unmount(job)
        if call.path == calls.REMOVE:
            self._mounts.note_removal(job)
        if call.path == calls.STOP_LOGGING and (log := ledger.find_log(job.arguments.file)) is not None:
            job.known_run = log.run
            ledger.drop_log(log.file)  # the container has exited, so it is never started again
            self._context.is_clean = False
        if call.path == calls.STOP_METRICS and ledger.metrics_run is not None:
            ledger.metrics_run = None
            self._context.is_clean = False

    def left(self, call: int, now: float) -> list[Action]:
        """A consumer has hung up without its answer."""
        context = self._context
        job = context.jobs.of_call(call)
        if job is None:
            return []
        context.jobs.detach(job)
        if job.stage is Stage.WAITING or job.stage is Stage.SETTLING:
            # A Mount that was sent stays in the ledger as requested: it is undone. An Unmount is not sent at all, as
            # its consumer takes the volume for mounted.
            if job.stage is Stage.SETTLING:
                self._mounts.doubt(job)
            elif job.path != calls.MOUNT or not job.attempts:
                self._mounts.restore_phase(job)
            context.jobs.remove(job)
        elif job.stage is Stage.FORWARDED and (job.body is None or job.path in calls.QUERIES):
            context.abort(job)
            context.jobs.remove(job)
        return self._proceed(now)

    # events of calls that were forwarded

    def started(self, attempt: int, now: float) -> list[Action]:
        """The head of a stream's answer has come, and passes through."""
        job = self._context.jobs.of_attempt(attempt)
        if job is not None:
            job.has_started = True
            if calls.is_endless(job.path):
                job.due = None
        return []

    def finished(self, attempt: int, now: float) -> list[Action]:
        """A stream that had started is complete, or broke; the shell has closed it."""
        job = self._context.jobs.of_attempt(attempt)
        if job is not None:
            self._context.jobs.remove(job)
        return self._proceed(now)

    def answered(self, attempt: int, status: int, body: bytes, now: float) -> list[Action]:
        """The complete answer to a call that was read whole."""
        job = self._context.jobs.of_attempt(attempt)
        if job is None or job.stage is not Stage.FORWARDED:
            return []
        self._outcomes.answered(job, status, body, now)
        return self._proceed(now)

    def broken(self, attempt: int, reason: str, now: float, *, was_sent: bool) -> list[Action]:
        """The plugin could not be reached (not ``was_sent``), or closed the connection; nothing came through yet."""
        job = self._context.jobs.of_attempt(attempt)
        if job is None or job.stage is not Stage.FORWARDED:
            return []
        self._outcomes.broken(job, reason, was_sent=was_sent, now=now)
        return self._proceed(now)

    def verified(self, attempt: int, problem: str, mount_point: str, now: float) -> list[Action]:
        """The result of ``Verify``; no problem if both paths are one directory. ``mount_point`` is the host's."""
        job = self._context.jobs.of_attempt(attempt)
        if job is None or job.stage is not Stage.CHECKING:
            return []
        problem = shorten(problem)  # it names paths of the plugin's answer
        if problem == EXITED and job.run == self._context.table.run:
            self._context.exited_run = job.run  # this is noticed before the exit itself, sometimes
            self._outcomes.verified(job, problem, mount_point, now)
            return self._changed(now)
        self._outcomes.verified(job, problem, mount_point, now)
        return self._proceed(now)

    def released(self, attempt: int, problem: str, now: float) -> list[Action]:
        """The result of ``Release``."""
        job = self._context.jobs.of_attempt(attempt)
        if job is None or job.stage is not Stage.CHECKING:
            return []
        self._mounts.released(job, problem)
        return self._proceed(now)

    def unsaved(self, save: Save, now: float) -> list[Action]:
        """The ledger could not be saved; ``otherwise`` of the action is done."""
        context = self._context
        job = context.jobs.of_attempt(save.attempt) if save.attempt else None
        if job is not None:
            self._mounts.restore_phase(job)
            if job.purpose == "call":
                context.fail(job, f"cannot call {context.describe(job)}: its record cannot be saved")
            else:
                self._replays.dropped(job)
        entry = context.ledger.find(save.mount) if save.mount is not None else None
        if entry is not None:
            entry.phase = "mounting"  # the consumer got an error, so it is undone
        actions, context.actions = context.actions, []
        context.is_clean = False
        context.wake_at(now + _SAVE_AGAIN)
        return actions

    # time

    def tick(self, now: float) -> list[Action]:
        """To be called at ``wake``."""
        context = self._context
        context.wake = None
        for job in context.jobs.all():
            if job.stage is Stage.WAITING:
                limit = job.deadline if job.waits_until is None else min(job.deadline, job.waits_until)
                if limit <= now:
                    self._outcomes.expired(job, now)
                    continue
                context.wake_at(limit)
                if job.not_before > now:
                    context.wake_at(job.not_before)
            elif job.due is not None:
                if job.due <= now:
                    self._outcomes.overdue(job, now)
                else:
                    context.wake_at(job.due)
        return self._proceed(now)

    def _proceed(self, now: float) -> list[Action]:
        """Send what may be sent now."""
        context = self._context
        if context.is_offline:
            for job in list(context.jobs.waiting.values()):
                self._outcomes.offline(job, now)
        elif context.is_ready:
            self._replays.synchronize(now)
            at_once = max(context.table.options.at_once, 1)
            while (chosen := context.jobs.choose(at_once, lambda job: self._is_blocked(job, now))) is not None:
                self._forward(chosen, now)
        self._bound_waits(now)
        return self._flush()

    def _is_blocked(self, job: Job, now: float) -> bool:
        if job.not_before > now or (job.path == calls.MOUNT and self._mounts.is_releasing(job.arguments.volume)):
            return True
        if job.path == calls.REMOVE and self._mounts.is_unsettled(job.arguments.volume):
            return True
        return job.purpose == "call" and self._replays.blocks(job, now)

    def _bound_waits(self, now: float) -> None:
        """Calls wait for a plugin that starts as long as ``wait_limit`` says, for a slot as long as they may last."""
        context = self._context
        is_starting = not context.is_ready or not self._replays.is_gate_open
        if not is_starting and not self._was_starting:
            return
        self._was_starting = is_starting
        for job in context.jobs.waiting.values():
            if job.purpose != "call" or job.refusal:
                continue
            if not is_starting:
                job.waits_until = None
            elif job.waits_until is None:
                job.waits_until = now + calls.wait_limit(job.path)
                context.wake_at(job.waits_until)

    def _forward(self, job: Job, now: float) -> None:
        context = self._context
        attempt = context.jobs.start(job)
        job.attempts += 1
        job.run = context.table.run
        if job.purpose != "call":
            job.deadline = now + calls.time_limit(job.path, context.table.options.time_limits)
        job.due = job.deadline
        context.wake_at(job.due)
        action = Forward(attempt, job.call, job.path, job.body)
        if job.path in (calls.MOUNT, calls.UNMOUNT):
            self._mounts.forward(job, action, now)
        else:
            context.emit(action)

    def _flush(self) -> list[Action]:
        context = self._context
        if not context.is_clean:
            context.save()
        actions, context.actions = context.actions, []
        return actions
