"""One version of a plugin in the place of another: jobs of the plugin's inbox.

The record says which version counts, and is written in one step. While a new version of a running plugin is tried out,
the record has the one before it as well; whoever finds that there goes back.
"""

import logging
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import mount_points_below, run_blocking
from moorage.engine.consent import Granted, granted_of
from moorage.engine.lifecycle import State
from moorage.engine.plugin import Plugin
from moorage.engine.running import remove_strays
from moorage.engine.store import Version
from moorage.engine.work import Work, check_unused, told
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Overrides,
    compute_privileges,
    effective_settings,
    parse_config,
    rebase,
)

__all__ = ("Agreement", "change_version", "check_can_change", "go_back", "restore_package")

log = logging.getLogger(__name__)

Agreement = Callable[[Config, Overrides], Awaitable[Granted]]
"""What is granted to a plugin with this config and these settings. Raises: Denied."""


def check_can_change(plugin: Plugin, *, restart: bool, force: bool) -> None:
    """Whether a plugin may get another version now; ``restart`` allows it to be stopped for that.

    Raises: Conflict where it is enabled, in Docker's words, or used by somebody, unless forced.
    """
    if plugin.state is State.REMOVING:
        raise errors.Conflict(f"cannot upgrade plugin {plugin.name}: it is being removed")
    if not restart and (plugin.record.enabled or plugin.state is not State.DISABLED):
        raise errors.Conflict(f"plugin must be disabled before upgrading: plugin {plugin.name} is enabled")
    check_unused(plugin, force=force)


async def change_version(
    work: Work, plugin: Plugin, version: Version, agree: Agreement, *, restart: bool, force: bool
) -> tuple[str, ...]:
    """Let a plugin have this version; the names of settings that no longer apply and are dropped.

    ``agree`` says what is granted to it.

    A plugin that is enabled is stopped, changed and started; where the new version does not become ready, the one
    before it is started again. When this returns the record names one of the two, for good.

    Raises: Conflict; Denied; why the new version did not become ready; Unavailable where nothing could be changed.
    """
    check_can_change(plugin, restart=restart, force=force)
    before = Version.of(plugin.record)
    config = parse_config(version.config.encode(), is_stored=True).config
    rebased = rebase(config, plugin.record.overrides)
    granted = await agree(config, rebased.overrides)
    made = replace(version, overrides=rebased.overrides, **granted.as_fields())
    is_wanted = plugin.record.enabled
    if is_wanted:
        await work.stop(plugin)
    try:
        await _check_nothing_is_mounted(plugin)
        await _save(work, plugin, made, before if is_wanted else None)
    except errors.MoorageError:
        await work.start_again(plugin)
        raise
    if is_wanted:
        await _try_out(work, plugin)
    return rebased.dropped


async def go_back(work: Work, plugin: Plugin) -> None:
    """End what runs of a version that was tried out, and let the one before it count again.

    Raises: Unavailable; the record has both then, and the next start of the engine goes back.
    """
    previous = plugin.record.previous
    assert previous is not None, "a version is being tried out"
    if plugin.state is not State.DISABLED:
        await work.stop(plugin)
    await remove_strays(plugin, work.need_machinery())
    await run_blocking(plugin.places.clear)  # the root that is mounted is the other one's
    await _save(work, plugin, previous, None)


async def restore_package(
    work: Work, plugin: Plugin, version: Version, given: Overrides, granted: Granted | None
) -> None:
    """Give a plugin whose package is lost this one: a job of its inbox. One that is enabled is started.

    ``given`` are settings that go before its own, ``granted`` is what it may have beside what it had (None: whatever it
    requests). Raises: Unavailable where nothing could be changed.
    """
    config = parse_config(version.config.encode(), is_stored=True).config
    rebased = rebase(config, plugin.record.overrides)
    overrides = _merged(rebased.overrides, given)
    if granted is None:
        granted = Granted(compute_privileges(config, effective_settings(config, overrides)))
    made = replace(
        version, overrides=overrides, **granted_of(plugin.record, plugin.config).and_also(granted).as_fields()
    )
    for key in rebased.dropped:
        log.warning("the setting %s of plugin %s does not apply any more and was dropped", key, plugin.name)
    if plugin.state is not State.DISABLED:
        await work.stop(plugin)
    await run_blocking(plugin.places.clear)
    await _save(work, plugin, made, None)
    await work.start_again(plugin)


async def _save(work: Work, plugin: Plugin, version: Version, previous: Version | None) -> None:
    """Change what a plugin is, in one step on the disk. Raises: Unavailable, and nothing is changed."""
    config = parse_config(version.config.encode(), is_stored=True).config
    await work.save(plugin, **version.as_fields(), previous=previous)
    plugin.config = config


async def _try_out(work: Work, plugin: Plugin) -> None:
    """Start the new version and make it the only one. Raises: why that failed, after going back."""
    failure = await work.start(plugin, work.timeouts.ready, failures=0)
    if failure is None and not plugin.is_ready:
        failure = errors.Conflict("it was told to stop while it started")
    if failure is None:
        try:
            await work.save(plugin, previous=None)
        except errors.MoorageError as error:
            failure = error
    if failure is None:
        work.tell(plugin, "ready")
        return
    log.warning("plugin %s goes back to its version of before: %s", plugin.name, failure)
    await go_back(work, plugin)
    await work.start_again(plugin)
    raise told(
        failure, f"cannot upgrade plugin {plugin.name}: {failure}; the version of before is in its place again"
    ) from failure


async def _check_nothing_is_mounted(plugin: Plugin) -> None:
    """Raises: Conflict naming what is mounted below its root, which would be lost with the root. Source: case 014."""
    if points := await run_blocking(lambda: mount_points_below(plugin.places.runtime)):
        raise errors.Conflict(f"cannot upgrade plugin {plugin.name}: {points[0]} is mounted; unmount it first")


def _merged(own: Overrides, given: Overrides) -> Overrides:
    if given == NO_OVERRIDES:
        return own
    return replace(
        own,
        env=tuple({**dict(own.env), **dict(given.env)}.items()),
        mounts=tuple({**dict(own.mounts), **dict(given.mounts)}.items()),
        devices=tuple({**dict(own.devices), **dict(given.devices)}.items()),
        args=own.args if given.args is None else given.args,
        args_name=own.args_name if given.args is None else given.args_name,
        secrets=own.secrets | given.secrets,
    )
