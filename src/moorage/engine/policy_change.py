"""A change of one plugin's policy: checked, saved, and applied to what runs as far as the kernel can do that."""

from moorage import errors
from moorage.engine.plugin import Plugin
from moorage.engine.values import PolicyChange
from moorage.engine.work import Job, Work
from moorage.host.id_mapping import find_base
from moorage.plugins import Confinement, Privilege, check_user_namespace, find_missing, resources_of, widenings

__all__ = ("policy_change",)


def policy_change(work: Work, plugin: Plugin, change: PolicyChange) -> Job:
    """The job for the plugin's inbox.

    Limits of memory, processors and processes are those of the running plugin at once; the rest is of its next start.

    Raises: Invalid for a value, or for a user namespace that the plugin cannot have; Denied for what it widens and this
    host does not grant. The job raises: Unavailable where the change is not saved; MoorageError where it is saved, but
    not applied to what runs.
    """
    change.of(plugin.record.policy)
    _attended(work, plugin, change)
    if change.confinement.userns == "auto":
        check_user_namespace(plugin.config, plugin.settings())

    async def job() -> None:
        confinement = plugin.record.confinement.updated(change.confinement)
        id_base = plugin.record.id_base
        if confinement.userns == "auto" and not id_base:
            taken = frozenset(each.record.id_base for each in work.registry.all())
            id_base = find_base(taken, int(plugin.id[:8], 16))
        await work.save(
            plugin,
            policy=change.of(plugin.record.policy),
            attended_widenings=_attended(work, plugin, change),
            confinement=confinement,
            id_base=id_base,
        )
        await _apply_to_running(work, plugin, change.confinement)

    return job


def _attended(work: Work, plugin: Plugin, change: PolicyChange) -> tuple[Privilege, ...]:
    """What of the changed confinement a person granted. Raises: Denied for what is new and not granted by the host."""
    before, after = widenings(plugin.confinement), widenings(plugin.confinement.updated(change.confinement))
    new = find_missing(after, before)
    if not change.is_attended:
        work.consent.check_widenings(new, ())
    granted = (*plugin.record.attended_widenings, *(new if change.is_attended else ()))
    keys = [each.key for each in granted]
    return tuple(each for each in after if each.key in keys)


async def _apply_to_running(work: Work, plugin: Plugin, change: Confinement) -> None:
    resources = resources_of(plugin.confinement, change)
    run = plugin.run
    if not resources or run is None or run.ended.is_set():
        return
    try:
        await work.need_machinery().client.update_task(run.container, resources)
    except errors.NotFound:
        return  # it ended meanwhile; the next run has the new limits
    except errors.MoorageError as error:
        raise errors.MoorageError(
            f"cannot change the limits of plugin {plugin.name} while it runs: {error}; they are saved, "
            "and apply from its next start on"
        ) from error
