"""A change of one plugin's policy: checked, saved, and applied to what runs as far as the kernel can do that."""

from collections import Counter

from moorage import errors
from moorage.engine.plugin import Plugin
from moorage.engine.values import PolicyChange
from moorage.engine.work import Job, Work
from moorage.host.id_mapping import find_base
from moorage.plugins import Confinement, Policy, check_user_namespace, resources_of, widenings

__all__ = ("policy_change",)


def policy_change(work: Work, plugin: Plugin, change: PolicyChange, grants: Policy | None) -> Job:
    """The job for the plugin's inbox; ``grants`` is what this host grants unattended (None: everything).

    Limits of memory, processors and processes are those of the running plugin at once; the rest is of its next start.

    Raises: Invalid for a value, or for a user namespace that the plugin cannot have; Denied for what it widens and this
    host does not grant. The job raises: Unavailable where the change is not saved; MoorageError where it is saved, but
    not applied to what runs.
    """
    change.of(plugin.record.policy)
    _check_granted(plugin, change, grants)
    if change.confinement.userns == "auto":
        check_user_namespace(plugin.config, plugin.settings())

    async def job() -> None:
        confinement = plugin.record.confinement.updated(change.confinement)
        id_base = plugin.record.id_base
        if confinement.userns == "auto" and not id_base:
            taken = frozenset(each.record.id_base for each in work.registry.all())
            id_base = find_base(taken, int(plugin.id[:8], 16))
        await work.save(plugin, policy=change.of(plugin.record.policy), confinement=confinement, id_base=id_base)
        await _apply_to_running(work, plugin, change.confinement)

    return job


def _check_granted(plugin: Plugin, change: PolicyChange, grants: Policy | None) -> None:
    if grants is None or change.is_attended:
        return
    before, after = plugin.confinement, plugin.confinement.updated(change.confinement)
    new = Counter(each.key for each in widenings(after)) - Counter(each.key for each in widenings(before))
    refused = [
        f"{name} [{value}]"
        for name, values in new.elements()
        for value in values
        if not grants.allows_widening(name, value)
    ]
    if refused:
        raise errors.Denied(f"cannot grant unattended: this host's policy does not allow {', '.join(refused)}")


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
