"""Mount and Unmount of one plugin: what is recorded before each step, and what each answer means (P07, P11, P11a)."""

from moorage.proxy.core import answers, calls
from moorage.proxy.core.actions import Forward, Release, Reply, Verify
from moorage.proxy.core.answers import Answer, Document, failure, success
from moorage.proxy.core.context import PluginContext
from moorage.proxy.core.jobs import Job, Stage
from moorage.proxy.core.ledger import LedgerMount
from moorage.proxy.core.paths import TranslatedPath, to_host

__all__ = ("CHECK_LIMIT", "MountCalls")

CHECK_LIMIT = 15.0
"""Seconds until paths are compared, or mounts released; the threads that do it have their own, shorter limits."""


class MountCalls:
    """Part of the core."""

    def __init__(self, context: PluginContext) -> None:
        self._context = context

    def is_release(self, job: Job) -> bool:
        """Whether mount points are released for this job now."""
        return job.path == calls.UNMOUNT and job.stage is Stage.CHECKING

    def is_releasing(self, volume: str) -> bool:
        """Whether a new mount of this volume could be unmounted by mistake, so that it has to wait."""
        return any(
            self.is_release(job) and job.arguments.volume == volume for job in self._context.jobs.active.values()
        )

    # before

    def forward(self, job: Job, action: Forward, now: float) -> None:
        """Send a Mount or an Unmount. The intention is saved first: the proxy may be killed before the answer."""
        context, ledger = self._context, self._context.ledger
        entry = ledger.find(job.mount)
        if job.path == calls.MOUNT and (entry is None or entry.phase == "mounting"):
            job.is_new = True
            ledger.drop(job.mount)
            volume, mount_id = job.mount
            ledger.mounts.append(LedgerMount(volume, mount_id, job.consumer, context.date(now), job.run))
        elif job.path == calls.UNMOUNT and job.purpose == "call" and entry is not None and entry.phase == "mounted":
            entry.phase = "unmounting"
        else:
            context.emit(action)
            return
        context.save(action, attempt=action.id)

    def restore_phase(self, job: Job) -> None:
        """The plugin has not done what it was to do: the ledger says again what it said before."""
        entry = self._context.ledger.find(job.mount)
        if entry is None or job.purpose == "undo":
            return
        if job.path == calls.MOUNT and job.is_new and entry.phase == "mounting":
            self._context.ledger.drop(job.mount, is_lost=True)
            self._context.is_clean = False
        elif job.path == calls.UNMOUNT and entry.phase == "unmounting":
            entry.phase = "mounted"
            self._context.is_clean = False

    def refused(self, job: Job) -> None:
        """The plugin has answered a Mount or an Unmount with an error: so it is the plugin's, not to be undone."""
        self.restore_phase(job)
        entry = self._context.ledger.find(job.mount)
        if entry is not None and job.path == calls.UNMOUNT and entry.is_returned:
            entry.is_returned, self._context.is_clean = False, False

    def note_unmount(self, job: Job) -> None:
        """An Unmount has come, and may wait. Saved before: the proxy may be killed meanwhile."""
        entry = self._context.ledger.find(job.mount)
        if entry is not None and entry.phase == "mounted" and not entry.is_returned:
            entry.unmount_requested()
            self._context.is_clean = self._context.is_clean and not entry.is_returned

    def note_removal(self, job: Job) -> None:
        """dockerd removes a volume that it has no user of: what it has mounted of it, it has forgotten.

        So it does when the Get failed, with which it begins an Unmount. Source: moby volume/service/store.go, Remove.
        """
        for entry in self._context.ledger.mounts:
            if entry.volume == job.arguments.volume and entry.phase == "mounted" and entry.consumer == job.consumer:
                entry.unmount_requested()
                self._context.is_clean = self._context.is_clean and not entry.is_returned

    def is_mounted(self, volume: str) -> bool:
        """Whether a consumer has a mount of this volume."""
        return any(each.volume == volume and each.phase != "mounting" for each in self._context.ledger.mounts)

    def is_unsettled(self, volume: str) -> bool:
        """Whether the plugin is about to mount or to unmount a volume that no consumer knows to be mounted any more."""
        ledger = self._context.ledger
        for job in self._context.jobs.all():
            if job.arguments.volume != volume or job.path not in (calls.MOUNT, calls.UNMOUNT):
                continue
            entry = ledger.find(job.mount)
            is_returned = entry is not None and entry.is_returned
            if job.purpose == "undo" or (job.purpose == "replay" and is_returned):
                return True
            if job.purpose == "call" and job.call is None:
                return True
        return False

    def doubt(self, job: Job) -> None:
        """An Unmount may have been done or not, and its consumer gets an error."""
        if job.path != calls.UNMOUNT:
            return
        self.restore_phase(job)
        entry = self._context.ledger.find(job.mount)
        if entry is not None and entry.phase == "mounted":
            entry.doubt()
            self._context.is_clean = False

    # Mount

    def mount_answered(self, job: Job, answer: Answer, document: Document, now: float) -> str:
        """Have the path of an answer checked. The problem where there is no path to check."""
        if answer.is_failure:
            return answers.text(answer)
        context = self._context
        inside = answers.mountpoint(document)
        found = to_host(context.table.paths, inside)
        problem = self._path_problem(inside, found)
        if problem or found is None:
            return problem
        entry = context.ledger.find(job.mount)
        context.jobs.leave_plugin(job, Stage.CHECKING)
        job.answer, _ = answers.host_paths(job.path, context.table.paths, answer, document)
        job.host_path = found.path
        job.due = now + CHECK_LIMIT
        context.wake_at(job.due)
        needs_mount = (entry is not None and entry.mount_point != "") or job.arguments.volume in context.ledger.covered
        context.emit(Verify(job.attempt, context.table.pid, inside, found.path, found.rule.outside, needs_mount))
        return ""

    def _path_problem(self, inside: str, found: TranslatedPath | None) -> str:
        name = self._context.table.name
        if not inside:
            return f"plugin {name} answered Mount without a Mountpoint"
        inside = answers.shorten(inside)
        if found is None:
            return f"plugin {name} mounted at {inside}, which is no path of the host"
        if found.rule.is_read_only:
            return (
                f"plugin {name} mounted at {inside}, in a directory of the host that it was granted read-only; a "
                "consumer could write to it"
            )
        if found.rule.kind == "root":
            return (
                f"plugin {name} mounted at {inside}, in its own root, which the host cannot use across a restart; "
                "its config needs a propagatedMount above that path"
            )
        return ""

    def mounted(self, job: Job, mount_point: str) -> LedgerMount | None:
        """Record a mount that was checked; None where it was removed from the ledger meanwhile."""
        entry = self._context.ledger.find(job.mount)
        if entry is None:
            return None
        if entry.phase == "mounting":
            entry.consumer = job.consumer
        if job.purpose == "call":
            entry.path, entry.is_returned = job.host_path, False
        entry.phase, entry.run, entry.mount_point = "mounted", job.run, mount_point
        entry.problem = ""
        self._context.ledger.learn(entry.volume, entry.path)
        self._context.is_clean = False
        return entry

    def complete_mount(self, job: Job, entry: LedgerMount) -> None:
        """Answer a Mount. Its consumer may have left: then another one that requests the same gets it, or none does."""
        context = self._context
        if job.call is None and (other := self._same_request(job)) is not None:
            context.jobs.hand_over(other, job)
            entry.consumer = job.consumer
        if job.call is None or job.answer is None:
            if job.is_new:
                entry.phase = "mounting"  # no consumer knows of it, and none will return it
            context.reply(job, success())
            return
        reply, call = Reply(job.call, job.answer), job.call
        context.jobs.remove(job)
        if job.is_new:
            context.notify("volume-mount", volume=entry.volume, consumer=entry.consumer)
        reason = f"cannot mount volume {entry.volume}: its record cannot be saved"
        context.save(reply, otherwise=(Reply(call, failure(reason)),), mount=entry.key if job.is_new else None)

    def _same_request(self, job: Job) -> Job | None:
        for other in self._context.jobs.waiting.values():
            if other.path == job.path and other.mount == job.mount and other.call is not None:
                return other
        return None

    # Unmount

    def unmounted(self, job: Job, now: float) -> None:
        """A volume's mount does not exist any more: release what may cover its path, then answer."""
        context = self._context
        entry = context.ledger.find(job.mount)
        volume = job.arguments.volume
        others = [each for each in context.ledger.mounts if each.volume == volume and each is not entry]
        covered = context.ledger.covered.get(volume)
        if others or not covered:
            self._dropped(job)
            return
        if job.number not in context.jobs.active:
            context.jobs.start(job)
        context.jobs.leave_plugin(job, Stage.CHECKING)
        job.due = now + CHECK_LIMIT
        context.wake_at(job.due)
        context.emit(Release(job.attempt, tuple(covered)))

    def released(self, job: Job, problem: str) -> None:
        """The paths of a volume were released, or a problem prevents it; the consumer is answered in any case."""
        context, volume = self._context, job.arguments.volume
        if problem:
            context.notify("release-failed", volume=volume, error=problem)
        else:
            context.ledger.covered.pop(volume, None)
        self._dropped(job)

    def _dropped(self, job: Job) -> None:
        context = self._context
        entry = context.ledger.find(job.mount)
        if entry is not None or job.mount in context.ledger.lost:
            # the consumer of an undone mount may return it although it got an error
            context.ledger.drop(job.mount, is_lost=job.purpose == "undo")
            context.is_clean = False
        if entry is not None and job.purpose == "call":
            context.notify("volume-unmount", volume=entry.volume, consumer=entry.consumer)
        context.reply(job, success())
