"""The link between an engine and the plugin proxy: gives it the tables of plugins, and plugins what it reports."""

import grp
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.consumers.conflicts import remove_dead_sockets
from moorage.engine.consumers.names import socket_path
from moorage.engine.consumers.podman import PODMAN_CONFIG, PodmanConfig
from moorage.engine.consumers.tables import make_table
from moorage.engine.lifecycle import State
from moorage.engine.values import PUBLISH_DIRECTORY
from moorage.host.sockets import PluginSocket
from moorage.proxy.client import ProxyClient, ledger_ids
from moorage.proxy.protocol import News, PluginNews, PluginTable
from moorage.runs.directories import SHORT_ID
from moorage.runs.removal import clear_propagated_mount
from moorage.timeouts import EngineTimeouts

if TYPE_CHECKING:
    from moorage.engine.plugin import PluginIndex
    from moorage.engine.supervisor import Supervisor

__all__ = ("DEFAULT_PUBLISH_PATHS", "PublishPaths", "Publisher")

log = logging.getLogger(__name__)


_ATTRIBUTES = {"id": "mount", "name": "volume", "action": "call"}
"""Attributes of a report whose names are those of the event's plugin and of its action."""


class PublishPaths(Struct, frozen=True):
    """Where an engine publishes plugins on its machine."""

    directory: Path = PUBLISH_DIRECTORY
    """Of the sockets."""
    podman_config: Path = PODMAN_CONFIG
    """The file that makes podman know them."""


DEFAULT_PUBLISH_PATHS = PublishPaths()


class Publisher:
    """One for each engine. Plugins report their changes to it; it has what the proxy knows of them."""

    def __init__(
        self,
        plugins: "PluginIndex[Supervisor]",
        paths: PublishPaths,
        root: Path,
        exec_root: Path,
        timeouts: EngineTimeouts,
    ) -> None:
        """``root`` is the data directory; the proxy's state is below ``exec_root``."""
        self.directory = paths.directory
        self._podman = PodmanConfig(paths.podman_config, root)
        self._plugins = plugins
        self._state = exec_root / "proxy"
        self._timeouts = timeouts
        self._client = ProxyClient(self._state, timeouts, self._make_tables, self._take_news)
        self.names = anyio.Lock()
        """Taken from the check whether names are free until they are in a record."""
        self._news: dict[str, PluginNews] = {}
        self._used: set[str] = set()
        """Ids of plugins whose volumes the engine uses."""
        self._is_running = False

    # what plugins and their jobs call

    def changed(self) -> None:
        """A record or a state has changed."""
        if self._is_running and not self._client.is_needed and any(map(self._is_served, self._plugins.all())):
            self._client.need()
        self._client.notify()

    def find_news(self, id: str) -> PluginNews | None:
        """What the proxy last reported of a plugin."""
        return self._news.get(id)

    @property
    def listeners(self) -> Sequence[str]:
        """Paths of all sockets that the proxy listens on."""
        return list(self._client.listeners)

    @property
    def problem(self) -> str:
        """Why the proxy does not run; empty where it does, or is not needed."""
        return self._client.problem

    @property
    def starts(self) -> int:
        """How often a proxy was connected to: another number after one has exited."""
        return self._client.starts

    async def is_started_again(self, starts: int) -> bool:
        """Whether another proxy serves than at this number of starts; waits a moment for it."""
        with anyio.move_on_after(self._timeouts.proxy_news):
            await self._client.wait_restart(starts)
            return await self.settle()
        return False

    def internal_socket(self, id: str) -> PluginSocket:
        """The proxy's socket for the engine's own calls to a plugin that it uses."""
        return PluginSocket(self._state / "s", f"{id[:SHORT_ID]}.sock")

    def use(self, id: str) -> None:
        """The engine uses the volumes of a plugin."""
        if id not in self._used:
            self._used.add(id)
            self.changed()

    def forget(self, id: str) -> None:
        """Let the proxy drop what it knows of a plugin that is not published any more."""
        self._used.discard(id)
        self._news.pop(id, None)
        if (plugin := self._plugins.find_id(id)) is not None:
            plugin.take_mounts(())
        self.changed()

    async def settle(self) -> bool:
        """Whether the sockets are as the plugins of now say; waits at most ``timeouts.proxy_settled`` for that."""
        with anyio.move_on_after(self._timeouts.proxy_settled):
            return not self._is_running or await self._client.settle_or_fail()
        return False

    async def refresh(self) -> None:
        """Return when plugins know what is mounted now; waits at most ``timeouts.proxy_news`` for that."""
        with anyio.move_on_after(self._timeouts.proxy_news):
            await self._client.refresh()

    async def settled(self) -> None:
        """Return when the sockets are as the plugins of now say. No bound."""
        if self._is_running:
            await self._client.settle()

    async def wait_news(self) -> bool:
        """Whether it is known what consumers have mounted; waits at most ``timeouts.proxy_settled`` for that."""
        if not self._is_running:
            return True
        with anyio.move_on_after(self._timeouts.proxy_settled):
            return await self._client.wait_news()
        return False

    # the engine

    def prepare(self) -> None:
        """Remove what a proxy that was killed has left of published sockets, and find what it knew (blocking).

        Called with the records read, before anything is served.
        """
        published = [plugin.record.published for plugin in self._plugins.all()]
        paths = [socket_path(self.directory, name) for each in published if each for name in each.names]
        for path in remove_dead_sockets(paths, self.directory):
            log.warning("removed %s, on which no process listens any more", path)
        self._used.update(id for id in ledger_ids(self._state) if self._plugins.find_id(id) is not None)

    async def run(self) -> None:
        """Serve the plugins for as long as the engine works."""
        self._is_running = True
        self.changed()
        await self._client.serve()

    @property
    def has_mounts(self) -> bool:
        """Whether consumers have mounted volumes of plugins of this engine."""
        return any(news.mounts for id, news in self._news.items() if self._plugins.find_id(id) is not None)

    async def protect_mounts(self) -> None:
        """Let no consumer write to a mount point whose plugin was ended without its supervisor."""
        each = [(plugin.directories, plugin.mount_points()) for plugin in self._plugins.all()]

        def protect() -> None:
            for directories, points in each:
                clear_propagated_mount(directories, points)

        await run_blocking(protect)

    async def shut_down(self) -> None:
        """Stop the proxy, which leaves no socket behind. Raises: Unavailable if it does not exit."""
        self._is_running = False
        await self._client.stop()

    # what the client calls

    async def _make_tables(self) -> Sequence[PluginTable]:
        views = [plugin.view() for plugin in self._plugins.all() if plugin.record.published is not None]
        await run_blocking(lambda: self._podman.update(views, self.directory))
        served = [plugin for plugin in self._plugins.all() if self._is_served(plugin)]
        groups = {plugin.record.published.group for plugin in served if plugin.record.published is not None}
        gids = await run_blocking(lambda: _find_gids(groups)) if groups - {""} else {}
        tables = []
        for plugin in served:
            group = plugin.record.published.group if plugin.record.published is not None else ""
            news, is_known = self._news.get(plugin.id), plugin.inbox.is_run_known
            try:
                tables.append(make_table(plugin, self.directory, gids.get(group, -1), is_known=is_known, news=news))
            except errors.Invalid as error:
                log.error("cannot publish plugin %s: %s", plugin.name, error)
        return tables

    def _is_served(self, plugin: "Supervisor") -> bool:
        """Whether the proxy must know a plugin."""
        if plugin.state is State.REMOVING:
            return False
        if plugin.record.published is not None or plugin.id in self._used:
            return True
        return plugin.id in self._news and _is_used(self._news[plugin.id])

    def _take_news(self, news: News) -> None:
        before, self._news = self._news, {each.id: each for each in news.plugins}
        for id in before.keys() | self._news.keys():
            plugin, present = self._plugins.find_id(id), self._news.get(id)
            if plugin is not None:
                plugin.take_mounts(present.mounts if present is not None else ())
                if plugin.runner.has_returned:
                    plugin.inbox.queue(plugin.runner.release_returned)
                self._log_problems(plugin, before.get(id), present)
        for report in news.reports:
            plugin = self._plugins.find_id(report.id)
            if plugin is not None:
                attributes = {_ATTRIBUTES.get(key, key): value for key, value in report.attributes.items()}
                plugin.report(report.action, **attributes)
        if {id for id in before if _is_used(before[id])} != {id for id in self._news if _is_used(self._news[id])}:
            self.changed()

    def _log_problems(self, plugin: "Supervisor", before: PluginNews | None, present: PluginNews | None) -> None:
        known = before.socket_problems if before is not None else {}
        for path, problem in (present.socket_problems if present is not None else {}).items():
            if known.get(path) != problem:
                log.error("cannot serve plugin %s at %s: %s", plugin.name, path, problem)


def _is_used(news: PluginNews) -> bool:
    return bool(news.mounts or news.log_files)


def _find_gids(groups: set[str]) -> Mapping[str, int]:
    """The ids of groups that exist; sockets of the others are root's."""
    found = {}
    for group in groups - {""}:
        try:
            found[group] = grp.getgrnam(group).gr_gid
        except KeyError:
            log.error("there is no group %s, to which a plugin is published", group)
    return found
