"""What the engine and the plugin proxy send each other over the socket of the proxy.

The proxy greets first, and sends its ``News`` at once, so that an engine that finds it knows what is mounted. Then the
engine sends its whole ``Tables`` whenever something in it has changed, and the proxy its whole ``News``; who reconnects
sends all of it again. Each ``Tables`` has a number, which the next ``News`` repeats when the sockets are as the tables
say: an engine waits for that, and a proxy that does not answer is replaced. Each message is JSON with its length before
it; descriptors travel with it (``frames``).
"""

from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct, field

from moorage._version import __version__

__all__ = (
    "GREETING",
    "MAGIC",
    "QUIT",
    "News",
    "PathRule",
    "PluginNews",
    "PluginTable",
    "ProxyState",
    "PublishOptions",
    "Report",
    "Tables",
    "VolumeMount",
    "WhileDisabled",
    "WhileUnhealthy",
    "decode_news",
    "decode_tables",
    "encode",
)

MAGIC = b"moorage-proxy "
GREETING = MAGIC + __version__.encode() + b"\n"
"""The first message of the proxy. Another version is replaced by its own."""
QUIT = b"quit"
"""A message of the engine: exit, and leave no socket behind."""

ProxyState = Literal["starting", "ready", "disabled", "failed"]
"""``starting`` is also restarting and upgrading; ``failed`` is a plugin that is not started again by itself."""

WhileDisabled = Literal["auto", "unlink", "answer"]
"""What the sockets of a disabled plugin do; ``auto`` answers where podman has volumes of it (row P03)."""


WhileUnhealthy = Literal["forward", "fail"]
"""What happens to calls to a plugin whose health checks fail (row H06)."""


class PathRule(Struct, frozen=True):
    """A directory inside the plugin and the host's directory that it shows (row P07)."""

    inside: str
    outside: str
    kind: Literal["propagated", "bind", "root"]
    is_read_only: bool = False
    """Whether the plugin was granted it read-only, as its consumers then were not to write to it by a volume."""


class PublishOptions(Struct, frozen=True):
    """How a plugin is published, as its record has it."""

    while_disabled: WhileDisabled = "auto"
    replays: bool = True
    """Whether mounts and log files are sent again to the next run (row P11)."""
    while_unhealthy: WhileUnhealthy = "forward"
    at_once: int = 100
    """Most calls that are forwarded at the same time; further ones wait."""
    time_limits: dict[str, float] = field(default_factory=dict)
    """Seconds by call, for example ``VolumeDriver.Mount``; what is not in here has the usual limit (row P09)."""


class PluginTable(Struct, frozen=True):
    """One plugin as the proxy needs it."""

    id: str
    name: str
    types: tuple[str, ...]
    """As in the config: ``docker.volumedriver/1.0``."""
    state: ProxyState
    run: int
    """Number of its run: a plugin that is ready with another number than before has lost what it knew."""
    runtime: str
    """The run-time directory, below which ``socket`` is opened without following links (host.sockets.PluginSocket)."""
    socket: str
    published: tuple[str, ...] = ()
    """Absolute paths of the sockets for consumers; the proxy makes sub-directories."""
    publish_directory: str = ""
    """The directory that stays when the sockets are removed; the empty ones below it do not."""
    mode: int = 0o600
    gid: int = -1
    """Group of the sockets; -1 for root's."""
    is_unhealthy: bool = False
    """Whether its health checks fail."""
    pid: int = 0
    """Its process while it is ready, 0 otherwise."""
    paths: tuple[PathRule, ...] = ()
    options: PublishOptions = PublishOptions()


class Tables(Struct, frozen=True):
    """Everything that the proxy must know. A plugin that is not in here loses its sockets and what is known of it."""

    plugins: tuple[PluginTable, ...]
    """Required: a document that says nothing of plugins must not unpublish all of them."""
    listeners: tuple[str, ...] = ()
    """Paths of the listening sockets whose descriptors travel with this message, in their order. Only the first message
    on a connection has any: they are those of a proxy that was killed. A socket that no plugin names any more is closed
    and unlinked."""
    number: int = 0
    """Counts the tables on one connection, from 1. The engine sends the same tables with another number to check that
    the proxy answers."""


class VolumeMount(Struct, frozen=True):
    """A mount that a consumer has requested and not given back."""

    volume: str
    id: str
    """The consumer's id of the mount."""
    path: str
    """On the host."""
    consumer: str
    """Who requested it, as text: ``podman (pid 812)``, or the owner that ``moorage volume mount`` was given."""
    since: datetime
    problem: str = ""
    """Why it could not be made again after a restart; empty where it is mounted."""
    is_stale: bool = False
    """Whether it was made again: programs that had it open before still see the dead one."""
    mount_point: str = ""
    """The mount point of the plugin's file system, at or above ``path``: where a placeholder belongs while the plugin
    does not serve it (row P11a). Empty where ``path`` was a plain directory, which a placeholder would only hide."""


class PluginNews(Struct, frozen=True):
    """One plugin as the proxy knows it."""

    id: str
    mounts: tuple[VolumeMount, ...] = ()
    log_files: tuple[str, ...] = ()
    """FIFOs whose logging was started and not stopped."""
    socket_problems: dict[str, str] = field(default_factory=dict)
    """Why a socket could not be made, by path."""
    is_answering: bool = False
    """Whether the sockets exist while the plugin is disabled."""
    state: ProxyState = "starting"
    """With ``run`` and ``pid`` as the last tables had it: what an engine that has just started says of a plugin until
    it has found out what runs."""
    run: int = 0
    pid: int = 0


class Report(Struct, frozen=True):
    """Something that happened once, for an event of the plugin and the log."""

    id: str
    action: str
    """replay, replay-failed, refuse, ..."""
    attributes: dict[str, str] = field(default_factory=dict)


class News(Struct, frozen=True):
    """All that the proxy knows, and what has happened since the last message."""

    plugins: tuple[PluginNews, ...]
    reports: tuple[Report, ...] = ()
    listeners: tuple[str, ...] | None = None
    """Paths of all sockets that listen, also the internal ones, whose descriptors travel with this message in their
    order; None where they are those of the message before."""
    number: int = 0
    """Of the last tables that the sockets follow; 0 before the first tables on this connection."""


def encode(message: Tables | News) -> bytes:
    """A message as it is sent."""
    return msgspec.json.encode(message)


def decode_tables(raw: bytes) -> Tables:
    """Raises: msgspec.MsgspecError."""
    return msgspec.json.decode(raw, type=Tables)


def decode_news(raw: bytes) -> News:
    """Raises: msgspec.MsgspecError."""
    return msgspec.json.decode(raw, type=News)
