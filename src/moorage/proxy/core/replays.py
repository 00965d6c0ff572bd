"""What is said again to a new run of a plugin, and what is undone because no consumer received it (row P11)."""

import msgspec

from moorage.proxy.core import calls
from moorage.proxy.core.calls import Arguments
from moorage.proxy.core.context import PluginContext
from moorage.proxy.core.jobs import Job, Purpose
from moorage.proxy.core.ledger import UNKNOWN_RUN, LedgerLog, LedgerMount

__all__ = ("GATE", "Replays")

GATE = 2.0
"""Seconds that all calls wait for the replays; after that only those of the volumes and logs that are not ready yet."""
_LONGEST_PAUSE = 60.0  # seconds
_MOST_UNDOS, _MOST_LOGS = 3, 6  # attempts

Key = tuple[str, ...]


class Replays:
    """Part of the core."""

    def __init__(self, context: PluginContext) -> None:
        self._context = context
        self._failures: dict[Key, tuple[int, float]] = {}
        """How often something failed in the present run, and when it is tried again."""
        self._gates: dict[int, Job] = {}
        self._gate_until = 0.0
        self._run = -1

    def blocks(self, job: Job, now: float) -> bool:
        """Whether a consumer's call waits for a replay."""
        if not self._gates:
            return False
        volume = job.arguments.volume
        return now < self._gate_until or (
            volume != "" and any(volume == each.arguments.volume for each in self._gates.values())
        )

    @property
    def is_gate_open(self) -> bool:
        """Whether no call waits for a replay."""
        return not self._gates

    def synchronize(self, now: float) -> None:
        """Create the jobs that the ledger demands of the plugin, which is ready. May be repeated."""
        context, run = self._context, self._context.table.run
        if self._run != run:
            self._run = run
            self._failures.clear()
            self._gates.clear()
            self._gate_until = now + GATE
            if not context.table.options.replays:
                self._adopt(run)
        for entry in list(context.ledger.mounts):
            self._synchronize_mount(entry, run, now)
        for log in context.ledger.logs:
            if log.run != run or log.problem:
                self._create(calls.START_LOGGING, log.body, Arguments(file=log.file), log.run != run, now)
        if context.ledger.metrics_run not in (None, run):
            self._create(calls.START_METRICS, b"{}", Arguments(), True, now)

    def _adopt(self, run: int) -> None:
        """The plugin restores everything itself."""
        ledger = self._context.ledger
        for entry in ledger.mounts:
            if entry.phase == "mounted" and entry.run not in (run, UNKNOWN_RUN):
                entry.run, entry.is_stale, entry.problem = run, True, ""
                self._context.is_clean = False
        for log in ledger.logs:
            if log.run != run:
                log.run, log.problem = run, ""
                self._context.is_clean = False
        if ledger.metrics_run not in (None, run):
            ledger.metrics_run = run
            self._context.is_clean = False

    def _synchronize_mount(self, entry: LedgerMount, run: int, now: float) -> None:
        context = self._context
        arguments = Arguments(entry.volume, entry.id)
        body = msgspec.json.encode({"Name": entry.volume, "ID": entry.id})
        if entry.phase == "mounted" and entry.is_returned and entry.run == run and not entry.problem:
            if any(job.path == calls.UNMOUNT and job.mount == entry.key for job in context.jobs.waiting.values()):
                return  # its consumer's own Unmount comes first
            entry.phase, context.is_clean = "mounting", False
        if entry.phase == "mounted" and (entry.run != run or entry.problem):
            self._create(calls.MOUNT, body, arguments, entry.run not in (run, UNKNOWN_RUN), now)
        elif entry.phase == "mounting" and not self._is_requested(entry):
            if entry.run != run and context.table.options.replays:
                context.ledger.drop(entry.key, is_lost=True)  # the run that may have made it has exited
                context.is_clean = False
            else:
                self._create(calls.UNMOUNT, body, arguments, False, now, purpose="undo")

    def _is_requested(self, entry: LedgerMount) -> bool:
        """Whether a consumer's Mount works on it, or was interrupted and will be sent again."""
        jobs = self._context.jobs
        return jobs.has(("mount", *entry.key)) or any(
            job.path == calls.MOUNT and job.mount == entry.key and job.is_new for job in jobs.waiting.values()
        )

    def _create(
        self, path: str, body: bytes, arguments: Arguments, is_gate: bool, now: float, *, purpose: Purpose = "replay"
    ) -> None:
        context = self._context
        limit = calls.time_limit(path, context.table.options.time_limits)
        job = Job(context.jobs.number(), path, body, arguments, purpose=purpose, deadline=now + limit)
        key = _key(job)
        _, again = self._failures.get(key, (0, 0.0))
        if context.jobs.has(key):
            return
        if again > now:
            context.wake_at(again)
            return
        job.waits_until = now + calls.wait_limit(path)
        context.wake_at(job.waits_until)
        context.jobs.add(job)
        job.is_lost = is_gate
        if is_gate:
            self._gates[job.number] = job
            context.wake_at(self._gate_until)

    # outcomes

    def dropped(self, job: Job) -> None:
        """A job was given up, because its run has exited or its plugin is disabled; ``synchronize`` makes another."""
        self._gates.pop(job.number, None)
        self._context.jobs.remove(job)

    def succeeded(self, job: Job) -> None:
        """A log or the metrics were started again."""
        context, ledger = self._context, self._context.ledger
        if job.path == calls.START_METRICS:
            ledger.metrics_run = job.run if ledger.metrics_run is not None else None
        elif (log := ledger.find_log(job.arguments.file)) is not None:
            log.run, log.problem = job.run, ""
        context.is_clean = False
        self._complete(job)
        context.notify("replay", call=calls.method(job.path), **_attributes(job))

    def mounted(self, job: Job, entry: LedgerMount, now: float) -> None:
        """A mount was made again, and its path was checked."""
        if job.host_path != entry.path:
            entry.problem = f"it is mounted at {job.host_path} now, not at {entry.path}"
            self.failed(job, entry.problem, now)
            return
        entry.is_stale = entry.is_stale or job.is_lost
        self._complete(job)
        self._context.notify("replay", call=calls.method(job.path), path=entry.path, **_attributes(job))

    def failed(self, job: Job, problem: str, now: float) -> None:
        """The run, which still exists, did not do it: again after a pause, which grows."""
        context, ledger, key = self._context, self._context.ledger, _key(job)
        failures = self._failures.get(key, (0, 0.0))[0] + 1
        pause = min(2.0**failures, _LONGEST_PAUSE)
        self._gates.pop(job.number, None)
        context.jobs.remove(job)
        self._failures[key] = (failures, now + pause)
        context.wake_at(now + pause)
        if failures == 1 and job.purpose == "replay":
            context.notify("replay-failed", call=calls.method(job.path), error=problem, **_attributes(job))
        if job.purpose == "undo":
            if failures >= _MOST_UNDOS:
                ledger.drop(job.mount, is_lost=True)
                context.notify("undo-failed", error=problem, **_attributes(job))
        elif job.path == calls.MOUNT:
            if (entry := ledger.find(job.mount)) is not None:
                entry.problem, entry.run = problem, context.table.run
                entry.is_stale = entry.is_stale or job.is_lost
        elif job.path == calls.START_METRICS:
            ledger.metrics_run = context.table.run if ledger.metrics_run is not None else None
        elif (log := ledger.find_log(job.arguments.file)) is not None:
            self._log_failed(log, problem, failures)
        context.is_clean = False

    def _log_failed(self, log: LedgerLog, problem: str, failures: int) -> None:
        if failures >= _MOST_LOGS:
            self._context.ledger.drop_log(log.file)  # its container has exited without a StopLogging, for example
        else:
            log.problem, log.run = problem, self._context.table.run

    def undone(self, job: Job) -> None:
        """The plugin has unmounted what no consumer received; the job continues as a consumer's Unmount does."""
        self._failures.pop(_key(job), None)

    def _complete(self, job: Job) -> None:
        self._gates.pop(job.number, None)
        self._failures.pop(_key(job), None)
        self._context.jobs.remove(job)


def _key(job: Job) -> Key:
    """What the job is about: a mount, a log, or the metrics."""
    return next(key for key in sorted(job.keys) if key[0] != "replay")


def _attributes(job: Job) -> dict[str, str]:
    named = {"volume": job.arguments.volume, "id": job.arguments.id, "file": job.arguments.file}
    return {name: value for name, value in named.items() if value}
