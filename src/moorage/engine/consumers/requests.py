"""Publish a plugin, and the opposite: jobs of its inbox."""

import grp
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.consumers.authorization import check_not_authorizing
from moorage.engine.consumers.conflicts import check_free
from moorage.engine.consumers.names import is_kind, make_publication, socket_path
from moorage.engine.lifecycle import State
from moorage.plugins import Config
from moorage.proxy.protocol import PublishOptions
from moorage.runs.plan import LOG_DIRECTORY
from moorage.runs.removal import release_mount_points

if TYPE_CHECKING:
    from moorage.engine.consumers.publisher import Publisher
    from moorage.engine.runtime import EngineContext
    from moorage.engine.supervisor import Supervisor
    from moorage.engine.values import Publication

__all__ = ("check_authorization", "check_listening", "check_publication", "publish", "unpublish")

log = logging.getLogger(__name__)

_DEADLOCK = (
    "every dockerd deadlocks in its own plugin store when it finds a published metrics collector, and `docker volume "
    "ls` never returns; use --force if only other programs will use it"
)


async def publish(
    context: "EngineContext",
    plugin: "Supervisor",
    names: Sequence[str],
    options: PublishOptions,
    group: str,
    *,
    force: bool,
    podman: bool | None = None,
) -> None:
    """Give a plugin listening sockets under these names, instead of those that it has. May be repeated.

    Raises: Conflict naming who has a name, or who uses one that is to go; Invalid for a name, a group or an option;
    Unavailable.
    """
    publisher = context.publisher
    made = make_publication(plugin.name, names, options, group, publisher.directory, podman=podman)
    await run_blocking(lambda: _find_gid(group))
    _check_kinds(plugin, plugin.config, force=force)

    async def job() -> None:
        if plugin.state is State.REMOVING:
            raise errors.Conflict(f"cannot publish plugin {plugin.name}: it is being removed")
        before = plugin.record.published
        if before is not None and not set(before.names) <= set(made.names):
            plugin.check_unmounted(force=force)  # consumers know it by that name
        async with publisher.names:  # of two plugins, one gets a name
            await _check_names(context, plugin, made)
            await plugin.save(published=made)
        try:
            await check_listening(context.publisher, plugin, made)
        except errors.MoorageError:
            await plugin.save(published=before)
            raise
        await run_blocking(lambda: context.store.share(plugin.id, _find_gid(group)))
        plugin.report("publish", names=" ".join(made.names))
        if before is None and is_kind(plugin.config, "logdriver") and plugin.is_running:
            # a run that began before does not see the directory of the FIFOs
            log.info("restarting log driver %s, to show it the host's %s", plugin.name, LOG_DIRECTORY)
            await plugin.stop()
            await plugin.start_if_due()

    await plugin.inbox.do(job)


async def check_publication(
    context: "EngineContext", plugin: "Supervisor", config: Config, made: "Publication"
) -> "Publication":
    """How a plugin with this config is published, with its own name where there is none.

    Raises: Conflict naming who has a name; Invalid for a name, a group or an option.
    """
    directory = context.publisher.directory
    made = make_publication(plugin.name, made.names, made.options, made.group, directory, podman=made.podman)
    await run_blocking(lambda: _find_gid(made.group))
    _check_kinds(plugin, config, force=False)
    await _check_names(context, plugin, made)
    return made


async def _check_names(context: "EngineContext", plugin: "Supervisor", made: "Publication") -> None:
    _check_other_plugins(context, plugin, made)
    publisher = context.publisher
    own = publisher.listeners
    await run_blocking(lambda: check_free(plugin.name, made.names, publisher.directory, own))


async def check_authorization(plugin: "Supervisor", verb: str, *, force: bool) -> None:
    """Raises: Conflict for a plugin by which a dockerd authorizes requests, unless forced."""
    published = plugin.record.published
    if published is not None and not force and is_kind(plugin.config, "authz"):
        await run_blocking(lambda: check_not_authorizing(f"{verb} plugin {plugin.name}", published.names))


async def check_listening(publisher: "Publisher", plugin: "Supervisor", made: "Publication") -> None:
    """Raises: Conflict for a socket that cannot be made; Unavailable where the plugin proxy does not run."""
    if not await publisher.settle():
        raise errors.Unavailable(
            f"cannot publish plugin {plugin.name}: {publisher.problem or 'the plugin proxy does not answer'}"
        )
    news = publisher.find_news(plugin.id)
    problems = news.socket_problems if news is not None else {}
    for name in made.names:
        if problem := problems.get(socket_path(publisher.directory, name)):
            raise errors.Conflict(f"cannot publish plugin {plugin.name} as {name}: {problem}")


async def unpublish(context: "EngineContext", plugin: "Supervisor", *, force: bool) -> None:
    """Remove the sockets of a plugin. Raises: Conflict where it is not published, or in use, unless forced."""

    await check_authorization(plugin, "unpublish", force=force)

    async def job() -> None:
        if plugin.record.published is None:
            raise errors.Conflict(f"plugin {plugin.name} is not published")
        plugin.check_unmounted(force=force)
        names = plugin.record.published.names
        await plugin.save(published=None)
        await run_blocking(lambda: context.store.share(plugin.id, None))
        points = plugin.mount_points()
        context.publisher.forget(plugin.id)
        await context.publisher.settle()
        await run_blocking(lambda: release_mount_points(points))
        plugin.report("unpublish", names=" ".join(names))

    await plugin.inbox.do(job)


def _find_gid(group: str) -> int | None:
    """The id of a group, None for no group. Raises: Invalid."""
    if not group:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise errors.Invalid(f"cannot publish to group {group!r}: there is no such group") from error


def _check_kinds(plugin: "Supervisor", config: Config, *, force: bool) -> None:
    """Raises: Conflict for a kind that harms consumers; Invalid for a plugin that speaks no HTTP."""
    interface = config.interface
    if not interface.is_http:
        raise errors.Invalid(f"cannot publish plugin {plugin.name}: it speaks {interface.protocol_scheme}, not HTTP")
    if not force and is_kind(config, "metricscollector"):
        raise errors.Conflict(f"cannot publish plugin {plugin.name}: {_DEADLOCK}")


def _check_other_plugins(context: "EngineContext", plugin: "Supervisor", made: "Publication") -> None:
    """Raises: Conflict naming the plugin that has one of the names."""
    for other in context.plugins.all():
        if other is not plugin and other.record.published is not None:
            for name in made.names:
                if name in other.record.published.names:
                    raise errors.Conflict(
                        f"cannot publish plugin {plugin.name} as {name}: plugin {other.name} has that name"
                    )
