"""What the calls of consumers are: how each is read, limited and repeated, and how ``Plugin.Activate`` is answered.

Source: moby pkg/plugins, daemon/volume/drivers/proxy.go, daemon/logger/proxy.go; podman libpod/plugin/volume_api.go.
"""

import re
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from moorage import errors

__all__ = (
    "ACTIVATE",
    "CONTENT_TYPE",
    "CREATE",
    "GET",
    "LIST",
    "LOG_CAPABILITIES",
    "MOST_BODY_BYTES",
    "MOUNT",
    "PATH",
    "QUERIES",
    "READ_LOGS",
    "RECORDED",
    "RELEASES",
    "REMOVE",
    "SCOPE",
    "START_LOGGING",
    "START_METRICS",
    "STOP_LOGGING",
    "STOP_METRICS",
    "UNMOUNT",
    "Arguments",
    "activation",
    "arguments",
    "has_empty_answer",
    "is_counted",
    "is_endless",
    "is_plain",
    "is_repeatable",
    "is_whole",
    "method",
    "needs_consumer",
    "time_limit",
    "wait_limit",
)

ACTIVATE = "/Plugin.Activate"
CREATE = "/VolumeDriver.Create"
REMOVE = "/VolumeDriver.Remove"
MOUNT = "/VolumeDriver.Mount"
UNMOUNT = "/VolumeDriver.Unmount"
PATH = "/VolumeDriver.Path"
GET = "/VolumeDriver.Get"
LIST = "/VolumeDriver.List"
SCOPE = "/VolumeDriver.Capabilities"
START_LOGGING = "/LogDriver.StartLogging"
STOP_LOGGING = "/LogDriver.StopLogging"
READ_LOGS = "/LogDriver.ReadLogs"
LOG_CAPABILITIES = "/LogDriver.Capabilities"
START_METRICS = "/MetricsCollector.StartMetrics"
STOP_METRICS = "/MetricsCollector.StopMetrics"

CONTENT_TYPE = "application/json"
MOST_BODY_BYTES = 1024 * 1024
"""Of a call that is read whole."""

_VOLUME = frozenset((CREATE, REMOVE, MOUNT, UNMOUNT, PATH, GET, LIST, SCOPE))
_WHOLE = _VOLUME | {START_LOGGING, STOP_LOGGING, LOG_CAPABILITIES, START_METRICS, STOP_METRICS}
QUERIES = frozenset((PATH, GET, LIST, SCOPE, LOG_CAPABILITIES))
"""Calls that change nothing."""
RELEASES = frozenset((UNMOUNT, STOP_LOGGING, STOP_METRICS))
"""Calls by which a consumer gives something back."""
RECORDED = frozenset((MOUNT, START_LOGGING))
"""Calls that add to what must outlive a run of the plugin."""
_NAMED = frozenset((CREATE, REMOVE, MOUNT, UNMOUNT, PATH, GET))
_EMPTY = frozenset((CREATE, REMOVE, UNMOUNT, START_LOGGING, STOP_LOGGING, START_METRICS, STOP_METRICS))

_LONGEST_NAME = 1024
"""Characters of the name of a volume, of the id of a mount, and of the path of a FIFO; docker's and podman's ids have
64."""
_LONGEST_PATH = 256  # bytes
_SEGMENT = r"/[A-Za-z0-9_-][A-Za-z0-9_.~-]*"
_PATH = re.compile(f"(?:{_SEGMENT})+")

_LONG_LIMIT, _LIMIT = 120.0, 60.0  # seconds; moby's own limits of volume calls
_QUERY_WAIT, _WAIT = 3.0, 20.0  # seconds; podman itself waits 5 s for any answer

_NAMES = {
    "volumedriver": "VolumeDriver",
    "networkdriver": "NetworkDriver",
    "ipamdriver": "IpamDriver",
    "logdriver": "LogDriver",
    "authz": "authz",
    "metricscollector": "MetricsCollector",
    "secretprovider": "secretprovider",
}


class Arguments(Struct, frozen=True):
    """What the proxy reads of a call's body; empty where the call has no such field."""

    volume: str = ""
    id: str = ""
    """Of a mount."""
    file: str = ""
    """FIFO of a log."""


class _Body(Struct, frozen=True):
    Name: str = ""
    ID: str = ""
    File: str = ""


_READ = frozenset(_Body.__struct_fields__)
_READ_AS = {name.casefold(): name for name in _READ}


def method(path: str) -> str:
    """The name of a call for people: ``VolumeDriver.Mount``."""
    return path.lstrip("/")


def activation(types: Sequence[str]) -> bytes:
    """The answer to ``Plugin.Activate`` for the types of a config (``docker.volumedriver/1.0``).

    The plugin itself is not queried: managed plugins may answer 404, or with a name that dockerd refuses.
    """
    named = [each.partition("/")[0].rpartition(".")[2] for each in types]
    return msgspec.json.encode({"Implements": list(dict.fromkeys(_NAMES.get(each, each) for each in named))})


def is_plain(path: str) -> bool:
    """Whether a path has no second spelling, by which a plugin would find a call that the proxy takes for another one.

    Go programs decode ``%2E``, and remove the host, ``//``, ``/./`` and ``/../``.
    """
    return len(path) <= _LONGEST_PATH and _PATH.fullmatch(path) is not None


def is_whole(path: str) -> bool:
    """Whether a call and its answer are read completely before they are passed on; others pass through as streams."""
    return path in _WHOLE


def is_repeatable(path: str) -> bool:
    """Whether a call may be sent again after its connection broke: its second effect is that of the first."""
    return path in QUERIES or path == MOUNT


def is_endless(path: str) -> bool:
    """Whether the answer may last for ever, as followed logs do."""
    return path == READ_LOGS


def needs_consumer(path: str) -> bool:
    """Whether the name of the consumer is recorded; it takes as long to find out as the rest of the proxy's work."""
    return path in (ACTIVATE, CREATE, MOUNT, REMOVE)


def is_counted(path: str) -> bool:
    """Whether a call takes one of the plugin's slots; followers of logs would use them up."""
    return not is_endless(path)


def has_empty_answer(path: str) -> bool:
    """Whether an answer without a body means success: the call has nothing to answer."""
    return path in _EMPTY


def time_limit(path: str, limits: Mapping[str, float]) -> float:
    """Seconds for the whole call, or until an endless answer begins. ``limits`` are the plugin's own, by call."""
    usual = _LONG_LIMIT if path in (CREATE, MOUNT) else _LIMIT
    return limits.get(method(path), usual)


def wait_limit(path: str) -> float:
    """Seconds that a call waits for a plugin that is not ready."""
    return _QUERY_WAIT if path in QUERIES else _WAIT


def arguments(path: str, body: bytes) -> Arguments:
    """What the body of a whole call says.

    dockerd repeats a call whose connection broke without its body. A plugin that gets such a call may mount something
    else than what the container needs, so it never does.

    Raises: Invalid if it is no JSON object, if a name in it is no text or too long, or if the volume or the FIFO is
    missing; for a key that is read, in another spelling: plugins in Go would take its value.
    Source: moby pkg/plugins/client.go, callWithRetry.
    """
    try:
        read = msgspec.json.decode(body, type=_Body)
        keys = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise errors.Invalid(f"cannot call {method(path)}: its body is no JSON object: {error}") from error
    for key in keys:
        if key not in _READ and (name := _READ_AS.get(key.casefold())):
            raise errors.Invalid(f"cannot call {method(path)}: its body has the key {key!r}; write it as {name!r}")
    if (path in _NAMED and not read.Name) or (path in (START_LOGGING, STOP_LOGGING) and not read.File):
        missing = "Name" if path in _NAMED else "File"
        raise errors.Invalid(
            f"cannot call {method(path)}: its body has no {missing}; a connection may have broken before"
        )
    for name, value in (("Name", read.Name), ("ID", read.ID), ("File", read.File)):
        if len(value) > _LONGEST_NAME:
            raise errors.Invalid(f"cannot call {method(path)}: its {name} has more than {_LONGEST_NAME} characters")
    if path in _VOLUME:
        return Arguments(read.Name, read.ID if path in (MOUNT, UNMOUNT) else "")
    return Arguments(file=read.File)
