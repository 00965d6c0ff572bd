"""How the calls of one plugin continue: after an answer, without one, and when their plugin has exited (P04, P09)."""

from moorage.proxy.core import answers, calls, offline
from moorage.proxy.core.actions import Release
from moorage.proxy.core.answers import Answer, Document, success
from moorage.proxy.core.context import PluginContext
from moorage.proxy.core.jobs import Job, Stage
from moorage.proxy.core.ledger import LedgerLog
from moorage.proxy.core.mount_calls import MountCalls
from moorage.proxy.core.replays import Replays

__all__ = ("RECONNECT", "SETTLE", "Outcomes")

SETTLE = 0.3
"""Seconds after a broken connection until the plugin counts as alive: its exit is noticed within that time."""
RECONNECT = 0.05
"""Seconds between two attempts to connect."""
_MOST_STORED = 4096
"""Bytes of an answer that is given again while the plugin does not run."""
_MOST_ATTEMPTS = 2


class Outcomes:
    """Part of the core."""

    def __init__(self, context: PluginContext, mounts: MountCalls, replays: Replays) -> None:
        self._context = context
        self._mounts = mounts
        self._replays = replays

    # with an answer

    def answered(self, job: Job, status: int, body: bytes, now: float) -> None:
        """The complete answer to a call that was read whole."""
        answer, document = answers.normalize(job.path, self._context.table.name, status, body)
        if job.path == calls.MOUNT and not self._context.is_present(job.run):
            self.lost(job, now)  # another run does not know of it
        elif job.path == calls.MOUNT:
            self._mount_answered(job, answer, document, now)
        elif job.path == calls.UNMOUNT:
            self._unmount_answered(job, answer, now)
        elif job.purpose != "call":
            if answer.is_failure:
                self._replays.failed(job, answers.text(answer), now)
            else:
                self._replays.succeeded(job)
        else:
            self._complete(job, answer, document)

    def _mount_answered(self, job: Job, answer: Answer, document: Document, now: float) -> None:
        problem = self._mounts.mount_answered(job, answer, document, now)
        if problem and job.purpose == "replay":
            self._replays.failed(job, problem, now)
        elif answer.is_failure:
            self._mounts.refused(job)
            self._context.reply(job, answer)
        elif problem:
            self._mismatch(job, problem)

    def _mismatch(self, job: Job, problem: str) -> None:
        """The path cannot be given to the consumer: it gets an error, and a new mount, still "mounting", is undone."""
        self._context.notify("mount-failed", volume=job.arguments.volume, error=problem)
        self._context.fail(job, problem)

    def _unmount_answered(self, job: Job, answer: Answer, now: float) -> None:
        context = self._context
        entry = context.ledger.find(job.mount)
        if job.purpose == "undo":
            if answer.is_failure:
                self._replays.failed(job, answers.text(answer), now)
            else:
                self._replays.undone(job)
                self._mounts.unmounted(job, now)
        elif not answer.is_failure or (entry.problem if entry is not None else job.mount in context.ledger.lost):
            self._mounts.unmounted(job, now)  # what was lost in a crash may be returned all the same
        else:
            self._mounts.refused(job)
            context.reply(job, answer)

    def _complete(self, job: Job, answer: Answer, document: Document) -> None:
        """The answer to any other call of a consumer."""
        context, ledger = self._context, self._context.ledger
        if answer.is_failure:
            if job.path == calls.STOP_LOGGING and job.run != job.known_run >= 0:
                answer = success()  # it was started in a run that has exited
            context.reply(job, answer)
            return
        raw = answer
        answer, document = answers.host_paths(job.path, context.table.paths, answer, document)
        if job.path in (calls.GET, calls.LIST):
            found = answers.volumes(job.path, document)
            if job.path == calls.GET:  # whatever name the plugin gives it, only the one that was queried is known
                found = tuple(answers.Volume(job.arguments.volume, each.mountpoint) for each in found)
            learned = [ledger.learn(each.name, each.mountpoint) for each in found]
            if job.path == calls.LIST:
                learned.append(ledger.forget_others({each.name for each in found}))
            context.is_clean = context.is_clean and not any(learned)
        elif job.path == calls.CREATE:
            context.is_clean = context.is_clean and not ledger.learn(job.arguments.volume, "")
            context.notify("volume-create", volume=job.arguments.volume, consumer=job.consumer)
        elif job.path == calls.REMOVE:
            ledger.forget_volume(job.arguments.volume)
            if paths := ledger.covered.pop(job.arguments.volume, None):
                context.emit(Release(context.jobs.number(), tuple(paths)))
            context.is_clean = False
            context.notify("volume-remove", volume=job.arguments.volume)
        elif job.path == calls.SCOPE and (scope := answers.scope(document)) != ledger.scope:
            ledger.scope, context.is_clean = scope, False
        elif (
            job.path == calls.LOG_CAPABILITIES and raw.body != ledger.log_capabilities and len(raw.body) < _MOST_STORED
        ):
            ledger.log_capabilities, context.is_clean = raw.body, False
        elif job.path == calls.START_LOGGING and job.body is not None:
            ledger.drop_log(job.arguments.file)
            ledger.logs.append(LedgerLog(job.arguments.file, job.body, job.run))
            context.is_clean = False
        elif job.path == calls.START_METRICS:
            ledger.metrics_run, context.is_clean = job.run, False
        context.reply(job, answer)

    # checks

    def verified(self, job: Job, problem: str, mount_point: str, now: float) -> None:
        """The paths of a mount were compared."""
        context = self._context
        if problem and not context.is_present(job.run):
            self.lost(job, now)
            return
        if problem:
            if job.purpose == "replay":
                self._replays.failed(job, problem, now)
            else:
                self._mismatch(job, problem)
            return
        entry = self._mounts.mounted(job, mount_point)
        if entry is None:
            if job.purpose == "replay":
                self._replays.dropped(job)
            else:
                context.fail(job, f"volume {job.arguments.volume} was removed while it was mounted")
        elif job.purpose == "replay":
            self._replays.mounted(job, entry, now)
        else:
            self._mounts.complete_mount(job, entry)

    # without an answer

    def broken(self, job: Job, reason: str, *, was_sent: bool, now: float) -> None:
        """The connection to the plugin failed, or broke before the answer was complete."""
        context = self._context
        if was_sent:
            context.jobs.leave_plugin(job, Stage.SETTLING)
            job.refusal, job.waits_until = reason, None
            job.due = now + SETTLE
            context.wake_at(job.due)
            if not context.is_present(job.run):
                self.lost(job, now)
            return
        job.attempts -= 1
        job.refusal, job.not_before = reason, now + RECONNECT
        if job.path == calls.UNMOUNT:
            self._mounts.restore_phase(job)  # its plugin may have exited: then the next run mounts it first
        self._wait(job, now)

    def _wait(self, job: Job, now: float) -> None:
        context = self._context
        context.jobs.wait(job)
        if job.waits_until is None:
            job.waits_until = now + calls.wait_limit(job.path)
        context.wake_at(job.waits_until)
        if job.not_before > now:
            context.wake_at(job.not_before)

    def lost(self, job: Job, now: float) -> None:
        """The run that a job was sent to has exited."""
        context = self._context
        if job.purpose != "call":
            self._replays.dropped(job)
        elif context.is_offline:
            self.offline(job, now)
        elif job.call is None:
            # a Mount stays in the ledger as requested, and is undone where the next run may have it
            if job.path != calls.MOUNT:
                self._mounts.restore_phase(job)
            context.jobs.remove(job)
        elif calls.is_repeatable(job.path) and job.attempts < _MOST_ATTEMPTS:
            job.waits_until = None
            self._wait(job, now)
        elif offline.is_released(job.path) and context.table.options.replays:
            self._released_by_exit(job, now)
        else:
            self._mounts.restore_phase(job)
            context.fail(job, f"cannot call {context.describe(job)}: it exited before it answered")

    def settled(self, job: Job, now: float) -> None:
        """The run has not exited, so the plugin closed the connection itself."""
        context = self._context
        if job.purpose != "call":
            self._replays.failed(job, job.refusal, now)
        elif calls.is_repeatable(job.path) and job.attempts < _MOST_ATTEMPTS and job.call is not None:
            self._wait(job, now)
        else:
            self._mounts.doubt(job)
            context.fail(job, f"cannot call {context.describe(job)}: {job.refusal}")

    def offline(self, job: Job, now: float) -> None:
        """The plugin is disabled or has failed: answer at once."""
        context = self._context
        if job.purpose != "call":
            self._replays.dropped(job)
        elif offline.is_released(job.path):
            self._released_by_exit(job, now)
        else:
            self._mounts.restore_phase(job)
            context.reply(job, offline.answer(job, context.table, context.ledger))

    def _released_by_exit(self, job: Job, now: float) -> None:
        """What the job returns went with the plugin's process."""
        if job.path == calls.UNMOUNT:
            self._mounts.unmounted(job, now)
        else:
            self._context.reply(job, success())

    # too late

    def expired(self, job: Job, now: float) -> None:
        """A job has waited as long as it may."""
        context = self._context
        name = context.table.name
        if not context.is_ready:
            reason = f"plugin {name} is starting; it was not ready in time"
        elif job.refusal:
            reason = f"plugin {name} cannot be reached: {job.refusal}"
        elif self._replays.is_gate_open:
            reason = f"plugin {name} has not answered earlier calls in time"
        else:
            reason = f"plugin {name} is starting; its mounts were not made again in time"
        if job.purpose != "call":
            self._replays.failed(job, reason, now)
            return
        if job.path in (calls.GET, calls.PATH) and self._mounts.is_mounted(job.arguments.volume):
            # dockerd begins an Unmount with a Get, and sends none where that fails
            context.reply(job, offline.answer(job, context.table, context.ledger))
            return
        if job.path != calls.MOUNT or not job.attempts:
            self._mounts.restore_phase(job)
        context.fail(job, f"cannot call {calls.method(job.path)}: {reason}")

    def overdue(self, job: Job, now: float) -> None:
        """The present stage of an active job is over."""
        context = self._context
        if job.stage is Stage.SETTLING:
            self.settled(job, now)
        elif job.stage is Stage.CHECKING:
            if job.path == calls.MOUNT:
                self.verified(job, f"the mount of volume {job.arguments.volume} does not answer", "", now)
            else:
                self._mounts.released(job, "no answer")
        elif not context.is_present(job.run):
            context.abort(job)
            self.lost(job, now)
        else:
            context.abort(job)
            limit = calls.time_limit(job.path, context.table.options.time_limits)
            reason = f"no answer within {limit:g} s"
            if job.purpose != "call":
                self._replays.failed(job, reason, now)
                return
            self._mounts.doubt(job)
            context.fail(job, f"cannot call {context.describe(job)}: {reason}")
