"""Typed, synchronous client of the engine's API over its unix socket. Standard library only, so that it starts at once.

One connection a request. Against a Docker daemon Docker's own routes work too; what only Moorage tells is empty then.
"""

import http.client
import json
import select
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from moorage import errors

__all__ = (
    "DEFAULT_HOST",
    "Answer",
    "Client",
    "Event",
    "Holder",
    "LastExit",
    "LogLine",
    "Plugin",
    "Policy",
    "socket_of",
)

DEFAULT_HOST = "unix:///run/moorage/moorage.sock"

_LOOKING = 30.0  # seconds for what the engine answers without waiting for a plugin
_WORKING = 600.0  # for what starts and stops plugins; the engine bounds each step itself and says which one was late
_TRANSFER = 1800.0  # for a package to be unpacked
_SPARE = 120.0  # on top of a bound that the caller gave, for the clean-up after it passed

_KINDS: dict[int, type[errors.MoorageError]] = {
    400: errors.Invalid,
    401: errors.Unauthorized,
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Conflict,
    501: errors.Unsupported,
    503: errors.Unavailable,
}


@dataclass(frozen=True, slots=True)
class LastExit:
    """How the last run of a plugin ended, or why it could not be started."""

    code: int | None
    signal: str | None
    oom: bool
    at: datetime | None
    error: str


@dataclass(frozen=True, slots=True)
class Policy:
    """What happens when a plugin ends by itself, and how long it is given to end."""

    restarts: str
    most: int | None
    """Most restarts in a row; None for no limit."""
    stop_timeout: float | None
    """Seconds; None for the engine's default."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who uses a plugin."""

    token: str
    owner: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin as the engine shows it: what programs ask for most, and all of it in ``document``."""

    id: str
    name: str
    enabled: bool
    state: str
    description: str
    protocol: str
    """``interface.protocolScheme``; empty for the usual one."""
    restarts: int
    last_exit: LastExit | None
    next_try_at: datetime | None
    ready_at: datetime | None
    problem: str
    policy: Policy | None
    holders: tuple[Holder, ...]
    warnings: tuple[str, ...]
    document: Mapping[str, Any] = field(repr=False)
    """The JSON object, as it came."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a plugin's output."""

    at: datetime
    stream: str
    text: str
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a plugin."""

    at: datetime
    action: str
    id: str
    name: str
    attributes: Mapping[str, str]
    """What is told besides the name."""
    document: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a plugin answered to a call."""

    status: int
    body: bytes
    content_type: str


class Client:
    """The API of one engine. Every failure comes by kind; Unavailable and Denied where the engine cannot be reached."""

    def __init__(self, host: str = DEFAULT_HOST) -> None:
        """``host`` is ``unix://PATH`` or a path. Nothing is connected yet. Raises: Invalid."""
        self.path = socket_of(host)

    # ---- the engine

    def version(self) -> dict[str, Any]:
        """What the engine is, as Docker's GET /version tells it."""
        return _object(self._json("GET", "/version"))

    def info(self) -> dict[str, Any]:
        """What the engine works with, as Docker's GET /info tells it; ours is below ``Moorage``."""
        return _object(self._json("GET", "/info"))

    def events(self, *, since: datetime | None = None) -> Iterator[Event]:
        """Events from now on, the kept ones after ``since`` before them. Ends only when the engine does."""
        query = {"filters": json.dumps({"type": ["plugin"]})}
        if since is not None:
            query["since"] = f"{since.timestamp():.6f}"
        for document in self._lines(_with("/events", query)):
            yield _event(document)

    # ---- plugins

    def list(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[Plugin]:
        """All plugins that pass the filters (``enabled``, ``capability``), by name."""
        query = {"filters": json.dumps({key: list_of(values) for key, values in filters.items()})} if filters else {}
        documents = self._json("GET", _with("/plugins", query))
        if not isinstance(documents, list):
            raise errors.MoorageError("cannot read the engine's answer: it is no list of plugins")
        return sorted((_plugin(_object(each)) for each in documents), key=lambda plugin: plugin.name)

    def get(self, name: str) -> Plugin:
        """One plugin, by name, id or the beginning of its id."""
        return _plugin(_object(self._json("GET", f"/plugins/{_part(name)}/json")))

    def create(self, name: str, package: Iterable[bytes]) -> None:
        """Make a plugin of a tar stream of config.json and rootfs/, sent as it comes."""
        headers = {"Content-Type": "application/x-tar"}
        with self._answer("POST", _with("/plugins/create", {"name": name}), package, headers, within=_TRANSFER):
            pass

    def enable(self, name: str, within: int = 0) -> None:
        """Start it and wait until it listens, ``within`` seconds (0: the engine's default)."""
        path = _with(f"/plugins/{_part(name)}/enable", {"timeout": str(within)})
        self._json("POST", path, within=within + _SPARE if within else _WORKING)

    def disable(self, name: str, *, force: bool = False) -> None:
        """Stop it; with ``force`` also where somebody uses it."""
        self._json("POST", _with(f"/plugins/{_part(name)}/disable", _force(force)), within=_WORKING)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove it; with ``force`` also where it is enabled or used."""
        self._json("DELETE", _with(f"/plugins/{_part(name)}", _force(force)), within=_WORKING)

    def restart(self, name: str) -> None:
        """Stop it and start it again."""
        self._json("POST", f"{_ours(name)}/restart", within=_WORKING)

    def set(self, name: str, assignments: Sequence[str], secrets: Sequence[str] = ()) -> None:
        """Change settings (``NAME=VALUE``), all or none; the ``secrets`` are never shown again."""
        document = {"assignments": list_of(assignments), "secrets": list_of(secrets)}
        self._json("POST", f"{_ours(name)}/set", document)

    def policy(self, name: str) -> Policy:
        """Its policy."""
        return _policy(_object(self._json("GET", f"{_ours(name)}/policy")))

    def set_policy(
        self, name: str, *, restarts: str | None = None, most: int | None = None, stop_timeout: float | None = None
    ) -> Policy:
        """Change the lines of its policy that are not None (``most`` 0: no limit); the whole of it after that."""
        given = {"restarts": restarts, "most": most, "stop_timeout": stop_timeout}
        document = {key: value for key, value in given.items() if value is not None}
        return _policy(_object(self._json("PUT", f"{_ours(name)}/policy", document)))

    def hold(self, name: str, owner: str) -> str:
        """Say that ``owner`` uses it: the token that gives it back."""
        return _text(_object(self._json("POST", f"{_ours(name)}/holders", {"owner": owner})), "token")

    def release(self, name: str, token: str) -> None:
        """Give a hold back."""
        self._json("DELETE", f"{_ours(name)}/holders/{_part(token)}")

    def call(self, name: str, method: str, body: bytes = b"", within: float = 0) -> Answer:
        """POST ``body`` to the plugin's /METHOD and wait ``within`` seconds (0: the engine's default)."""
        query = {"method": method, **({"timeout": f"{within:g}"} if within else {})}
        waiting = (within or _WORKING) + _SPARE
        headers = {"Content-Type": "application/json"}
        with self._answer("POST", _with(f"{_ours(name)}/call", query), body, headers, within=waiting) as answer:
            status = answer.getheader("X-Plugin-Status", "200")
            if not status.isdecimal():
                raise errors.MoorageError(f"cannot read the engine's answer: {status!r} is no status of a plugin")
            return Answer(int(status), answer.read(), answer.getheader("Content-Type", ""))

    def logs(
        self, name: str, *, tail: int | None = None, since: datetime | None = None, follow: bool = False
    ) -> Iterator[LogLine]:
        """Its output, oldest first: the last ``tail`` lines (None: all) after ``since``; then what comes."""
        query = {"follow": "1"} if follow else {}
        if tail is not None:
            query["tail"] = str(tail)
        if since is not None:
            query["since"] = since.isoformat()
        for document in self._lines(_with(f"{_ours(name)}/logs", query)):
            yield _log_line(document)

    # ---- the wire

    def _json(self, method: str, path: str, document: object = None, *, within: float = _LOOKING) -> Any:
        body = b"" if document is None else json.dumps(document).encode()
        headers = {"Content-Type": "application/json"} if body else {}
        with self._answer(method, path, body, headers, within=within) as answer:
            raw = answer.read()
        return _decode(raw) if raw.strip() else None

    def _lines(self, path: str) -> Iterator[dict[str, Any]]:
        """The JSON objects of a stream, each as soon as it comes."""
        with self._answer("GET", path, within=None) as answer:
            rest = b""
            # Not readline(): that takes a stream that was cut off for one that ended.
            while data := answer.read1(65536):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _object(_decode(line))

    @contextmanager
    def _answer(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        *,
        within: float | None,
    ) -> Iterator[http.client.HTTPResponse]:
        """A good answer, of which the body may still come. Raises: by kind, for one of 400 and more as well."""
        connection = _Connection(self.path, within)
        try:
            connection.connect()
            with _told(self.path, within):
                answer = _exchange(connection, method, path, body, headers or {})
                if answer.status >= 400:
                    raise _KINDS.get(answer.status, errors.MoorageError)(_message(answer))
                yield answer
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, within: float | None) -> None:
        super().__init__("localhost", timeout=within)
        self._path = path

    def connect(self) -> None:
        """Raises: Unavailable where nobody listens, Denied without permission."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        text = f"cannot reach moorage at {self._path}: "
        try:
            self.sock.connect(self._path)
        except PermissionError as error:
            advice = "run this with sudo, or as a member of the group that the socket belongs to"
            raise errors.Denied(f"{text}permission denied; {advice}") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise errors.Unavailable(f"{text}there is no socket; start it with: moorage serve") from error
        except ConnectionRefusedError as error:
            raise errors.Unavailable(f"{text}nobody listens; start it with: moorage serve") from error
        except OSError as error:  # a path that is too long has no errno
            raise errors.Unavailable(f"{text}{error.strerror or error}") from error


@contextmanager
def _told(path: str, within: float | None) -> Iterator[None]:
    """Failures of the connection, by kind. Those of the caller's own block are MoorageErrors and pass."""
    try:
        yield
    except TimeoutError as error:
        raise errors.Unavailable(f"no answer from moorage at {path} within {within:g} s") from error
    except (ConnectionError, http.client.HTTPException) as error:
        why = "the connection broke off" if isinstance(error, http.client.IncompleteRead) else str(error)
        raise errors.Unavailable(f"moorage at {path} went away: {why or 'the connection broke off'}") from error


def _exchange(
    connection: _Connection, method: str, path: str, body: bytes | Iterable[bytes], headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    if isinstance(body, bytes):
        connection.request(method, path, body, dict(headers))
        return connection.getresponse()
    connection.putrequest(method, path)
    for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    for chunk in body:
        # An engine that refuses answers before it has read everything, and may not read the rest.
        if select.select([connection.sock], [], [], 0)[0]:
            return connection.getresponse()
        try:
            if chunk:
                connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        except ConnectionError:
            return connection.getresponse()
    connection.send(b"0\r\n\r\n")
    return connection.getresponse()
