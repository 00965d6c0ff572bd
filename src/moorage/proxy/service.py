"""The plugin proxy: its plugins, their sockets, the connections of consumers and of engines."""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from moorage.host.files import make_directory
from moorage.proxy.consumer import Connection, Exchange, PeerCredentials, peer_credentials
from moorage.proxy.core.answers import failure
from moorage.proxy.core.bounds import Connections
from moorage.proxy.engine_channel import EngineChannel
from moorage.proxy.guard import GuardLink
from moorage.proxy.listeners import Listener, Listeners, SocketSpec
from moorage.proxy.protocol import News, PluginNews, Report, Tables, decode_tables, encode
from moorage.proxy.shell import PluginShell, ShellContext, read_ledger
from moorage.timeouts import DEFAULT

__all__ = ("ProxyService",)

log = logging.getLogger(__name__)

_NEWS_PAUSE = 0.02  # seconds between two messages; several changes become one
_NEWS_DELAY = 0.005  # seconds after a change, so that the call that made it is answered first
_ACCEPTED_AT_ONCE = 64
_NO_DESCRIPTOR_PAUSE = 0.1  # seconds
_CHECK_INTERVAL = 30.0  # seconds between two checks whether the own socket still exists


class ProxyService:
    """Serves one state directory."""

    def __init__(self, state: Path, listener: socket.socket, tasks: asyncio.TaskGroup, guard: GuardLink) -> None:
        """Takes ownership of the listening socket for engines."""
        self._guard = guard
        self._state = state
        self._listener = listener
        self._inode = os.stat(listener.getsockname()).st_ino
        self._loop = asyncio.get_running_loop()
        self._context = ShellContext(state / "ledger", tasks, self._changed, self._exited)
        self._shells: dict[str, PluginShell] = {}
        self._known: dict[str, PluginNews] = {}
        """Of ledgers without a table, before the first tables."""
        self._listeners = Listeners(self._listen, self._unlisten)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._connections = Connections(descriptors, DEFAULT.proxy_idle_connection)
        self._full: set[str] = set()
        """Paths whose consumers have all the connections that they may."""
        self._channels: set[EngineChannel] = set()
        self._unsent: set[EngineChannel] = set()
        """Engines that have not the last news."""
        self._last: tuple[News, tuple[tuple[str, int], ...]] = News(()), ()
        """News, and the sockets with their inodes."""
        self._flush: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0
        self._has_tables = False
        self._listened: frozenset[str] = frozenset()
        """The plugins whose sockets for consumers exist."""
        self.stopped = asyncio.Event()

    def start(self, tables: bytes, listeners: Mapping[str, socket.socket]) -> None:
        """Read the ledgers, continue where the proxy before this one was killed, and accept engines."""
        make_directory(self._context.ledgers, 0o700)
        for path in sorted(self._context.ledgers.glob("*.json")):
            ledger = read_ledger(path)
            logs = tuple(each.file for each in ledger.logs)
            self._known[path.stem] = PluginNews(path.stem, ledger.outstanding(), logs)
        if tables:
            self._continue(tables, listeners)
        self._loop.add_reader(self._listener, self._accept_engine)
        self._loop.call_later(_CHECK_INTERVAL, self._check)

    def _continue(self, tables: bytes, listeners: Mapping[str, socket.socket]) -> None:
        try:
            self._configure(decode_tables(tables), listeners)
        except (ValueError, msgspec.MsgspecError) as error:  # of another version, and its engine sends new ones
            log.warning("cannot read the tables of the proxy before this one: %s", error)

    def close(self) -> None:
        """Leave no socket behind."""
        self._loop.remove_reader(self._listener)
        self._listeners.close_all()
        for channel in list(self._channels):
            channel.close()
        if self._is_reachable():
            os.unlink(self._listener.getsockname())
        self._listener.close()

    def _check(self) -> None:
        """Without its own socket, no engine reaches this process, and another one takes over."""
        if self._is_reachable():
            self._loop.call_later(_CHECK_INTERVAL, self._check)
        else:
            log.warning("the socket for engines was removed; exiting")
            self.quit()

    def _is_reachable(self) -> bool:
        try:
            return os.stat(self._listener.getsockname()).st_ino == self._inode
        except OSError:
            return False

    # engines

    def _accept_engine(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("cannot accept an engine: %s", error.strerror)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_NO_DESCRIPTOR_PAUSE, self._accept_engine_again)
            return
        connection.setblocking(False)
        channel = EngineChannel(connection, self)
        self._channels.add(channel)
        self._unsent.add(channel)
        self._send_news()

    def _accept_engine_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept_engine)

    def quit(self) -> None:
        """The proxy is to exit."""
        self.stopped.set()

    def closed(self, channel: EngineChannel) -> None:
        """The engine has gone."""
        self._channels.discard(channel)
        self._unsent.discard(channel)

    def written(self, channel: EngineChannel) -> None:
        """A message was sent completely, and the next one may be."""
        if channel in self._unsent:
            self._loop.call_soon(self._send_news)

    def configure(self, channel: EngineChannel, tables: Tables, listeners: Mapping[str, socket.socket]) -> None:
        """The whole tables, with the sockets of a former proxy."""
        # first, so that a proxy that is killed within this does not serve again what is removed here
        self._guard.send_tables(encode(replace(tables, listeners=())))
        self._configure(tables, listeners)
        channel.number = tables.number
        self._unsent.add(channel)
        self._send_news()

    def _configure(self, tables: Tables, listeners: Mapping[str, socket.socket]) -> None:
        self._has_tables = True
        self._known.clear()
        names = {table.id for table in tables.plugins}
        for plugin in [plugin for plugin in self._shells if plugin not in names]:
            self._shells.pop(plugin).remove()
        for path in self._context.ledgers.glob("*.json"):
            if path.stem not in names:
                path.unlink(missing_ok=True)
        self._connections.forget(names)
        for table in tables.plugins:
            if (shell := self._shells.get(table.id)) is not None:
                shell.configure(table)
            else:
                self._shells[table.id] = PluginShell(table, self._context)
        self._reconcile(listeners)

    def _exited(self) -> None:
        """A plugin has exited: the next proxy must not take its pid for it, as the engine may not run."""
        self._guard.send_tables(encode(Tables(tuple(shell.lasting_table for shell in self._shells.values()))))
        self._changed()

    def _reconcile(self, former: Mapping[str, socket.socket] | None = None) -> None:
        self._listened = self._listening()
        desired: dict[str, SocketSpec] = {}
        for shell in self._shells.values():
            table = shell.table
            internal = str(self._state / "s" / f"{table.id[:12]}.sock")
            desired[internal] = SocketSpec(table.id, 0o600, -1, is_internal=True)
            for path in table.published if shell.is_listening else ():
                desired[path] = SocketSpec(
                    table.id, table.mode, table.gid, is_internal=False, directory=table.publish_directory
                )
        if self._listeners.reconcile(desired, former):
            self._guard.send_listeners({path: each.socket for path, each in self._listeners.by_path.items()})

    # news

    def _changed(self) -> None:
        if self._flush is None:
            at = max(self._flushed_at + _NEWS_PAUSE, self._loop.time() + _NEWS_DELAY)
            self._flush = self._loop.call_at(at, self._send_changes)

    def _send_changes(self) -> None:
        self._flush = None
        self._flushed_at = self._loop.time()
        if self._has_tables and self._listening() != self._listened:
            self._reconcile()
        self._send_news()

    def _listening(self) -> frozenset[str]:
        """The plugins whose sockets for consumers are to exist."""
        return frozenset(plugin for plugin, shell in self._shells.items() if shell.is_listening)

    def _send_news(self) -> None:
        """Send the present news to each engine that has other ones."""
        news = self._make_news()
        listeners = {path: each.socket for path, each in self._listeners.by_path.items()}
        identity = tuple((path, each.inode) for path, each in self._listeners.by_path.items())
        if (news, identity) != self._last or self._context.reports:
            self._last = news, identity
            self._unsent |= self._channels
        reports = tuple(self._context.reports)
        is_sent = False
        for channel in list(self._unsent):
            named = tuple(listeners) if channel.sent_listeners != identity else None
            if channel.send(replace(news, reports=reports, listeners=named, number=channel.number), listeners):
                channel.sent_listeners = identity
                self._unsent.discard(channel)
                is_sent = True
        if is_sent:
            self._context.reports.clear()

    def _make_news(self) -> News:
        plugins = list(self._known.values())
        for shell in self._shells.values():
            news = shell.news()
            problems = {path: each for path, each in self._listeners.problems.items() if path in shell.table.published}
            plugins.append(replace(news, socket_problems=problems) if problems else news)
        return News(tuple(plugins))

    # consumers

    def _listen(self, listener: Listener) -> None:
        self._loop.add_reader(listener.socket, self._accept, listener)

    def _unlisten(self, listener: Listener) -> None:
        self._loop.remove_reader(listener.socket)

    def _accept(self, listener: Listener) -> None:
        share = self._connections.share(listener.spec.plugin, is_internal=listener.spec.is_internal)
        for _ in range(_ACCEPTED_AT_ONCE):
            if not self._connections.has_room(share, self._loop.time()):
                if listener.path not in self._full:
                    log.warning("all connections are in use; others wait to be accepted on %s", listener.path)
                self._full.add(listener.path)
                self._pause(listener)
                return
            try:
                connection, _ = listener.socket.accept()
            except BlockingIOError:
                self._full.discard(listener.path)
                return
            except OSError as error:  # too many open files: connections wait in the queue
                log.warning("cannot accept a connection on %s: %s", listener.path, error.strerror)
                self._pause(listener)
                return
            connection.setblocking(False)
            self._serve(listener, connection)

    def _pause(self, listener: Listener) -> None:
        """Connections wait in the queue for a moment."""
        self._loop.remove_reader(listener.socket)
        self._loop.call_later(_NO_DESCRIPTOR_PAUSE, self._accept_again, listener)

    def _accept_again(self, listener: Listener) -> None:
        if self._listeners.by_path.get(listener.path) is listener:
            self._listen(listener)

    def _serve(self, listener: Listener, connection: socket.socket) -> None:
        try:
            credentials = peer_credentials(connection)
        except OSError:
            connection.close()
            return
        if not self.admits(listener, credentials):
            connection.close()
            return
        Connection(
            connection,
            _PluginCalls(self, listener, credentials),
            credentials,
            self._context.spawn,
            plugin=listener.spec.plugin,
            share=self._connections.share(listener.spec.plugin, is_internal=listener.spec.is_internal),
            is_internal=listener.spec.is_internal,
        ).start()

    def admits(self, listener: Listener, credentials: PeerCredentials) -> bool:
        """Whether a consumer may use a socket; a refusal is logged and reported (row P14)."""
        spec = listener.spec
        if credentials.may_connect(spec.mode, spec.gid):
            return True
        log.warning("refused %s of user %d on %s", credentials.name, credentials.uid, listener.path)
        attributes = {"consumer": credentials.name, "user": str(credentials.uid), "path": listener.path}
        self._context.report(Report(spec.plugin, "refuse", attributes))
        return False

    def listener(self, path: str) -> Listener | None:
        """The socket at a path; None where no plugin has it now."""
        return self._listeners.by_path.get(path)

    def shell(self, plugin: str) -> PluginShell | None:
        """The plugin of this id; None if it was removed."""
        return self._shells.get(plugin)


class _PluginCalls:
    """The calls of one connection, for the plugin that has the socket's path.

    A consumer may keep its connection for as long as it lives, as dockerd does. So the connection outlives the plugin,
    and must lead to the next one of the name: a plugin that was removed and created again, for example.
    """

    def __init__(self, service: ProxyService, listener: Listener, credentials: PeerCredentials) -> None:
        self._service = service
        self._path = listener.path
        self._plugin = listener.spec.plugin
        self._credentials = credentials

    def opened(self, exchange: Exchange, body: bytes | None) -> None:
        """A call has been read, of a stream its head."""
        listener = self._service.listener(self._path)
        if listener is not None and listener.spec.plugin != self._plugin:
            if not self._service.admits(listener, self._credentials):
                exchange.reply(None)  # closes it, as a new connection would be
                return
            self._plugin = listener.spec.plugin
        shell = self._service.shell(self._plugin)
        if shell is None:
            exchange.reply(failure("the plugin was removed or is not published any more"))
        else:
            shell.opened(exchange, body)

    def left(self, exchange: Exchange) -> None:
        """The consumer has left before the answer."""
        shell = self._service.shell(self._plugin)
        if shell is not None:
            shell.left(exchange)
