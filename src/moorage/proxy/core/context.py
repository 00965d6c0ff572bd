"""What the parts of the core of one plugin share: its table, its ledger, its jobs, and the actions decided so far."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from moorage.proxy.core import calls
from moorage.proxy.core.actions import Abort, Action, Notify, Reply, Save
from moorage.proxy.core.answers import Answer, failure, shorten
from moorage.proxy.core.jobs import Job, Jobs, Stage
from moorage.proxy.core.ledger import Ledger
from moorage.proxy.protocol import PluginTable

__all__ = ("PluginContext",)


class PluginContext:
    """Changed by the core while it handles one event."""

    def __init__(self, table: PluginTable, ledger: Ledger, epoch: datetime) -> None:
        """``epoch`` is when the monotonic clock was 0."""
        self._epoch = epoch
        self.table = table
        self.ledger = ledger
        self.jobs = Jobs()
        self.actions: list[Action] = []
        self.wake: float | None = None
        """When the next ``tick`` is due; it may be earlier than needed."""
        self.exited_run: int | None = None
        """The run whose process has exited, which the table does not say yet."""
        self.is_clean = True
        """Whether the ledger is saved as it is."""
        self.recorded_bytes = 0
        """Of the ledger, when it was saved last."""

    @property
    def is_ready(self) -> bool:
        """Whether calls can be sent."""
        return self.table.state == "ready" and self.exited_run != self.table.run

    @property
    def is_offline(self) -> bool:
        """Whether the plugin does not become ready by itself, so that no call waits for it."""
        return self.table.state in ("disabled", "failed")

    def is_present(self, run: int) -> bool:
        """Whether this run still exists."""
        return self.is_ready and run == self.table.run

    def date(self, now: float) -> datetime:
        """An instant of the monotonic clock as a date."""
        return self._epoch + timedelta(seconds=now)

    def emit(self, *actions: Action) -> None:
        """Have this done, after what was decided before."""
        self.actions += actions

    def wake_at(self, instant: float) -> None:
        """Have ``tick`` called then."""
        self.wake = instant if self.wake is None else min(self.wake, instant)

    def save(
        self,
        *then: Action,
        otherwise: Sequence[Action] = (),
        attempt: int = 0,
        mount: tuple[str, str] | None = None,
    ) -> None:
        """Save the ledger, and do what relies on it only where that succeeded."""
        self.is_clean = True
        ledger = self.ledger.encode()
        self.recorded_bytes = len(ledger)
        self.emit(Save(ledger, then, tuple(otherwise), attempt, mount))

    def notify(self, action: str, **attributes: str) -> None:
        """Report to the engine what happened."""
        self.emit(Notify(action, {name: shorten(value) for name, value in attributes.items()}))

    def reply(self, job: Job, answer: Answer) -> None:
        """Answer a job's consumer, if it has one, and remove the job. An unsaved ledger is saved first."""
        call = job.call
        self.jobs.remove(job)
        replies = (Reply(call, answer),) if call is not None else ()
        if self.is_clean:
            self.emit(*replies)
        else:
            self.save(*replies, otherwise=replies)

    def fail(self, job: Job, reason: str) -> None:
        """Let a job fail with this text."""
        self.reply(job, failure(reason))

    def abort(self, job: Job) -> None:
        """Close the connection of a job that the plugin works on."""
        if job.stage is Stage.FORWARDED:
            self.emit(Abort(job.attempt))

    def describe(self, job: Job) -> str:
        """The call, for error texts."""
        return f"{calls.method(job.path)} of plugin {self.table.name}"
