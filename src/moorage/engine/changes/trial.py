"""One change of a plugin is tried out, and rolled back where it does not work: jobs of the plugin's inbox.

The record says what is current, and is written in one step. While something new of a plugin is tried out, the record
has what was before as well; a start that finds that rolls back. Version, settings, policy and publication of a change
are one: there is one stop, one trial, and one rollback.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.changes.values import ChangeTerms, PluginChange
from moorage.engine.consumers.names import is_kind
from moorage.engine.consumers.requests import check_listening, check_publication
from moorage.engine.grants import Grants, apply_limits, check_policy_change, grants_of, policy_fields, save_log_target
from moorage.engine.lifecycle import State
from moorage.engine.requests import Interrupted, as_user_error
from moorage.engine.runtime import EngineContext
from moorage.engine.supervisor import Supervisor
from moorage.engine.values import PluginTerms, PluginVersion, Publication
from moorage.host.mounts import mount_points_below
from moorage.plugins import (
    Config,
    Overrides,
    apply_settings,
    compute_privileges,
    effective_settings,
    merge_overrides,
    parse_config,
    rebase,
)

__all__ = ("Agreement", "change_version", "check_can_change", "restore_package", "roll_back")

log = logging.getLogger(__name__)

Agreement = Callable[[Config, Overrides], Awaitable[Grants]]
"""What is granted to a plugin with this config and these settings. Raises: Denied."""


class _Change(Struct, frozen=True):
    """A change of one plugin that may be made."""

    fields: Mapping[str, object]
    """Of its record."""
    must_stop: bool
    """What runs of it cannot be changed as it is."""
    dropped: tuple[str, ...]
    """Settings that no longer apply."""


def check_can_change(plugin: Supervisor, terms: ChangeTerms) -> None:
    """Whether a plugin may get another version now.

    Raises: Conflict where it is enabled, in Docker's words, or in use, unless forced.
    """
    if plugin.state is State.REMOVING:
        raise errors.Conflict(f"cannot upgrade plugin {plugin.name}: it is being removed")
    if not terms.restart and (plugin.record.enabled or plugin.state is not State.DISABLED):
        raise errors.Conflict(f"plugin must be disabled before upgrading: plugin {plugin.name} is enabled")
    plugin.check_unused(force=terms.force)


async def change_version(
    context: EngineContext,
    plugin: Supervisor,
    version: PluginVersion | None,
    agree: Agreement,
    terms: ChangeTerms,
) -> tuple[str, ...]:
    """Let a plugin have this version (None: the one that it has), and what else ``terms`` says; returns the names of
    settings that no longer apply and are dropped. ``agree`` says what is granted to it.

    What has to be stopped is stopped, changed and started; where it does not become ready, and healthy where the terms
    say so, all that was before is current again. When this returns the record permanently has one of the two.

    Raises: Conflict; Denied; Invalid; why what is new did not work; Unavailable where nothing could be changed.
    """
    if terms.desired is None:
        check_can_change(plugin, terms)
    change = await _prepare(context, plugin, version, agree, terms)
    if change.must_stop:
        check_can_change(plugin, terms)
    before, before_terms = PluginVersion.of(plugin.record), PluginTerms.of(plugin.record)
    is_tried = plugin.record.enabled or (terms.desired is not None and terms.desired.enabled)
    previous = {
        "previous": before if is_tried else None,
        "previous_terms": before_terms if is_tried and terms.desired is not None else None,
    }
    if change.must_stop and plugin.state is not State.DISABLED:
        await plugin.stop()
    try:
        if version is not None:
            await _check_nothing_is_mounted(plugin)
        await plugin.save(**change.fields, **previous)
    except errors.MoorageError:
        await plugin.start_if_due()
        raise
    if is_tried:
        await _try_out(context, plugin, terms)
    elif terms.desired is not None:
        await save_log_target(plugin)
        await _settle_consumers(context, plugin)
    return change.dropped


async def _prepare(
    context: EngineContext, plugin: Supervisor, version: PluginVersion | None, agree: Agreement, terms: ChangeTerms
) -> _Change:
    """What the change is; nothing is changed yet. Raises: Conflict; Denied; Invalid."""
    record, desired = plugin.record, terms.desired
    config = plugin.config if version is None else parse_config(version.config.encode(), is_stored=True).config
    rebased = rebase(config, record.overrides)
    overrides = rebased.overrides
    fields: dict[str, object] = {}
    restarts_driver = False
    if desired is not None:
        overrides = apply_settings(config, overrides, desired.assignments, secrets=desired.secrets)
        fields, restarts_driver = await _prepare_terms(context, plugin, config, overrides, desired)
    granted = await agree(config, overrides)
    made = replace(version or PluginVersion.of(record), overrides=overrides, **granted.as_fields())
    is_same = version is None and overrides == record.overrides
    is_down = plugin.state is not State.READY  # also one that waits for its next restart is started with the change
    return _Change({**made.as_fields(), **fields}, not is_same or restarts_driver or is_down, rebased.dropped)


async def _prepare_terms(
    context: EngineContext, plugin: Supervisor, config: Config, overrides: Overrides, desired: PluginChange
) -> tuple[dict[str, object], bool]:
    """The fields of the record, and whether they need a new run. Raises: Conflict; Denied; Invalid."""
    fields: dict[str, object] = {}
    restarts_driver = False
    if desired.policy is not None:
        check_policy_change(context, plugin, desired.policy, config, effective_settings(config, overrides))
        fields |= policy_fields(context, plugin, desired.policy)
    if isinstance(desired.published, Publication):
        fields["published"] = await check_publication(context, plugin, config, desired.published)
        restarts_driver = plugin.record.published is None and is_kind(config, "logdriver")
    elif desired.published is False:
        plugin.check_unmounted(force=False)
        fields["published"] = None
    if desired.labels is not None:
        fields["labels"] = desired.labels
    if desired.applied_by is not None:
        fields["applied_by"] = desired.applied_by
    return fields, restarts_driver


async def roll_back(context: EngineContext, plugin: Supervisor) -> None:
    """End what runs of a change that was tried out, and let what was before count again.

    Raises: Unavailable; the record has both then, and the next start of the engine goes back.
    """
    previous, terms = plugin.record.previous, plugin.record.previous_terms
    assert previous is not None, "a change is being tried out"
    if plugin.state is not State.DISABLED:
        await plugin.stop()
    await plugin.runner.remove_orphans(context.availability.require())
    await plugin.runner.remove_files()  # the root that is mounted is the other one's
    fields = {**previous.as_fields(), **(terms.as_fields() if terms is not None else {})}
    await plugin.save(**fields, previous=None, previous_terms=None)
    await save_log_target(plugin)


async def restore_package(plugin: Supervisor, version: PluginVersion, given: Overrides, granted: Grants | None) -> None:
    """Give a plugin whose package is lost this one: a job of its inbox. One that is enabled is started.

    ``given`` are settings that go before its own, ``granted`` is what it may have beside what it had (None: whatever it
    requests). Raises: Unavailable where nothing could be changed.
    """
    config = parse_config(version.config.encode(), is_stored=True).config
    rebased = rebase(config, plugin.record.overrides)
    overrides = merge_overrides(rebased.overrides, given)
    if granted is None:
        granted = Grants(compute_privileges(config, effective_settings(config, overrides)))
    made = replace(
        version, overrides=overrides, **grants_of(plugin.record, plugin.config).and_also(granted).as_fields()
    )
    for key in rebased.dropped:
        log.warning("the setting %s of plugin %s does not apply any more and was dropped", key, plugin.name)
    if plugin.state is not State.DISABLED:
        await plugin.stop()
    await plugin.runner.remove_files()
    await plugin.save(**made.as_fields(), previous=None)
    await plugin.start_if_due()


async def _try_out(context: EngineContext, plugin: Supervisor, terms: ChangeTerms) -> None:
    """Start what is new and make it the only one. Raises: why that failed, after going back."""
    was_enabled = plugin.record.enabled
    failure = await _start(context, plugin)
    if failure is None:
        try:
            await _confirm(context, plugin, terms)
        except errors.MoorageError as error:
            failure = error
    if failure is None:
        if not was_enabled:
            plugin.report("enable")
        plugin.report("ready")
        return
    log.warning("plugin %s goes back to what was before: %s", plugin.name, failure)
    await roll_back(context, plugin)
    await plugin.start_if_due()
    text = f"cannot change plugin {plugin.name}: {failure}; what was before is current again"
    if terms.desired is None:
        text = f"cannot upgrade plugin {plugin.name}: {failure}; the version of before is current again"
    rolled_back = as_user_error(failure, text)
    rolled_back.is_rolled_back = True
    raise rolled_back from failure


async def _start(context: EngineContext, plugin: Supervisor) -> errors.MoorageError | None:
    """Start it unless it is ready; why that failed."""
    try:
        await save_log_target(plugin)
    except errors.Unavailable as error:
        return error
    if plugin.is_ready:
        return None
    if plugin.record.enabled:
        failure = await plugin.start(context.timeouts.ready, failures=0)
    else:
        with plugin.starts.requested():
            failure = await plugin.start(context.timeouts.ready, failures=0, restarts=0, last_exit=None)
    if failure is None and not plugin.is_ready:
        failure = Interrupted("a stop was requested while it started")
    return failure


async def _confirm(context: EngineContext, plugin: Supervisor, terms: ChangeTerms) -> None:
    """Make what is new permanent, once it works. Raises: why it does not."""
    desired = terms.desired
    if desired is not None and desired.policy is not None:
        if desired.policy.health:
            plugin.health.follow()
        await apply_limits(context, plugin, desired.policy.confinement)
    if terms.wait:
        await plugin.health.wait_healthy(terms.wait)
    if desired is not None and desired.published is not None:
        await _settle_consumers(context, plugin)
    await plugin.save(previous=None, previous_terms=None)


async def _settle_consumers(context: EngineContext, plugin: Supervisor) -> None:
    """Return when the published sockets are as the record says. Raises: Conflict; Unavailable."""
    if plugin.record.published is None:
        await context.publisher.settle()
    else:
        await check_listening(context.publisher, plugin, plugin.record.published)


async def _check_nothing_is_mounted(plugin: Supervisor) -> None:
    """Raises: Conflict naming what is mounted below its root, which would be lost with the root. Source: case 014."""
    if points := await run_blocking(lambda: mount_points_below(plugin.directories.runtime)):
        raise errors.Conflict(f"cannot upgrade plugin {plugin.name}: {points[0]} is mounted; unmount it first")
