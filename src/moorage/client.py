"""A synchronous client of our own API, over its unix socket: what the command line uses.

Standard library only, because importing an HTTP library costs more time than most commands take.
"""

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import quote, urlencode

from moorage import errors
from moorage._lib.server_answer import decode_answer, expect
from moorage._lib.unix_http import UnixHttpConnection

__all__ = ("DEFAULT_HOST", "Execution", "MoorageClient", "Progress", "socket_of")

DEFAULT_HOST = "unix:///run/moorage/moorage.sock"

_KINDS: Mapping[int, type[errors.MoorageError]] = {
    400: errors.Invalid,
    401: errors.Unauthorized,
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Conflict,
    501: errors.Unsupported,
    408: errors.Invalid,
    414: errors.Invalid,
    431: errors.Invalid,
    503: errors.Unavailable,
}
_OURS = "/moorage/v1"
_PIECE = 256 * 1024


def socket_of(host: str) -> str:
    """The path of the socket that a host means: ``unix://PATH``, or just an absolute path. Raises: Invalid."""
    path = host.removeprefix("unix://")
    if not path.startswith("/"):
        raise errors.Invalid(f"cannot use host {host}: it must be unix:// and an absolute path")
    return path


class MoorageClient:
    """One engine. Each call makes a connection of its own.

    Failures come by kind, as the engine told them; Unavailable where no engine answers.
    """

    def __init__(self, host: str = DEFAULT_HOST, within: float | None = None) -> None:
        """``within``: seconds that one step of an answer may take; None where the engine bounds it, as it bounds all.

        Raises: Invalid for a host that is no socket.
        """
        self._path = socket_of(host)
        self._within = within

    # Docker's calls

    def version(self) -> Any:
        """GET /version."""
        return expect(dict, self._json("GET", "/version"))

    def info(self) -> Any:
        """GET /info."""
        return expect(dict, self._json("GET", "/info"))

    def plugins(self, filters: Mapping[str, Sequence[str]] | None = None) -> Any:
        """Every plugin that passes: objects as Docker's, with ours under ``Moorage``."""
        return expect(list, self._json("GET", "/plugins", {"filters": _filters(filters)} if filters else {}))

    def inspect(self, name: str) -> Any:
        """One plugin."""
        return expect(dict, self._json("GET", f"/plugins/{_quoted(name)}/json"))

    def create(self, name: str, package: Iterator[bytes]) -> None:
        """Make a plugin of a tar stream."""
        with self._open(
            "POST", "/plugins/create", {"name": name}, package, {"Content-Type": "application/x-tar"}
        ) as answer:
            answer.read()

    def enable(self, name: str, timeout: int = 0) -> None:
        """Start it; returns when it is ready. ``timeout`` in seconds, 0 for the engine's default."""
        self._json("POST", f"/plugins/{_quoted(name)}/enable", {"timeout": str(timeout)})

    def disable(self, name: str, *, force: bool = False) -> None:
        """Stop it; returns when nothing of it runs."""
        self._json("POST", f"/plugins/{_quoted(name)}/disable", _forced(force))

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove it."""
        self._json("DELETE", f"/plugins/{_quoted(name)}", _forced(force))

    def events(
        self, since: str = "", filters: Mapping[str, Sequence[str]] | None = None, until: str = ""
    ) -> Iterator[Any]:
        """What happens, as it happens; before that what happened from ``since`` on. Ends at ``until``, if given."""
        query = {key: value for key, value in (("since", since), ("until", until)) if value}
        yield from self._lines("/events", {**query, **({"filters": _filters(filters)} if filters else {})})

    # packages

    def privileges(self, remote: str, auth: str = "") -> Any:
        """What the plugin with this reference asks for. ``auth`` is the X-Registry-Auth of this and other calls."""
        with self._open("GET", "/plugins/privileges", {"remote": remote}, None, _auth(auth)) as answer:
            return decode_answer(answer.read())

    def request_privileges(
        self, remote: str = "", name: str = "", terms: Mapping[str, object] | None = None, auth: str = ""
    ) -> Any:
        """What a plugin would request (``Privileges``), what of it is ``New``, and the policy's ``Refusal``.

        By reference, by name of one that is here, or by both for an upgrade; ``terms`` has ``settings``, ``secrets``.
        """
        body = json.dumps(dict(terms or {})).encode()
        headers = {"Content-Type": "application/json", **_auth(auth)}
        query = {key: value for key, value in (("remote", remote), ("name", name)) if value}
        with self._open("POST", f"{_OURS}/privileges", query, body, headers) as answer:
            return decode_answer(answer.read())

    def grant(self, name: str, privileges: Sequence[Any] | None = None, *, attended: bool = False) -> Any:
        """Grant exactly this, as inspect shows it (None: all) to a plugin; ``attended``: a person was asked."""
        body = {"attended": attended, **({"privileges": list(privileges)} if privileges is not None else {})}
        return self._json("POST", f"{_OURS}/plugins/{_quoted(name)}/grant", body=body)

    def pull(
        self, remote: str, name: str, terms: Mapping[str, object], auth: str = "", *, once: bool = False
    ) -> "AbstractContextManager[Progress]":
        """Install a plugin; ``terms`` as the API has them. ``once`` is content with one that is there."""
        path = f"{_OURS}/{'ensure' if once else 'pull'}"
        return self._progress(path, {"remote": remote, "name": name}, terms, auth)

    def upgrade(
        self, name: str, remote: str, terms: Mapping[str, object], auth: str = "", **flags: bool
    ) -> "AbstractContextManager[Progress]":
        """Bring a plugin to another version; flags are ``restart`` and ``force``."""
        query = {"remote": remote, **{key: "1" for key, is_on in flags.items() if is_on}}
        return self._progress(f"{_OURS}/plugins/{_quoted(name)}/upgrade", query, terms, auth)

    @contextmanager
    def _progress(
        self, path: str, query: Mapping[str, str], body: Mapping[str, object] | Iterator[bytes] | None, auth: str
    ) -> "Iterator[Progress]":
        raw: bytes | Iterator[bytes] | None = None
        headers = _auth(auth)
        if isinstance(body, Mapping):
            raw, headers = json.dumps(dict(body)).encode(), {"Content-Type": "application/json", **headers}
        elif body is not None:
            raw, headers = body, {"Content-Type": "application/x-tar", **headers}
        with self._open("POST", path, query, raw, headers) as answer:
            yield Progress(answer)

    # ours

    def set(self, name: str, assignments: Sequence[str], secrets: Sequence[str] = ()) -> None:
        """Change settings, all or none; values of ``secrets`` are never shown again."""
        body = {"assignments": list(assignments), "secrets": list(secrets)}
        self._json("POST", f"{_OURS}/plugins/{_quoted(name)}/set", body=body)

    def restart(self, name: str) -> None:
        """Stop it and start it again."""
        self._json("POST", f"{_OURS}/plugins/{_quoted(name)}/restart")

    def policy(self, name: str) -> Any:
        """When it is restarted, and how long it has to end."""
        return self._json("GET", f"{_OURS}/plugins/{_quoted(name)}/policy")

    def set_policy(self, name: str, change: Mapping[str, object]) -> Any:
        """Change that: any of ``restarts``, ``most`` and ``stop_timeout``."""
        return self._json("PUT", f"{_OURS}/plugins/{_quoted(name)}/policy", body=dict(change))

    def logs(self, name: str, *, tail: int | None = None, since: str = "", follow: bool = False) -> Iterator[Any]:
        """Its output, oldest first: objects with ``at``, ``stream`` and ``text``."""
        query = {"tail": "all" if tail is None else str(tail), "since": since, "follow": "1" if follow else ""}
        yield from self._lines(f"{_OURS}/plugins/{_quoted(name)}/logs", query)

    def host_path(self, name: str, inside: str) -> str:
        """The host's path of what a plugin calls so."""
        return str(self._json("GET", f"{_OURS}/plugins/{_quoted(name)}/path", {"path": inside})["Path"])

    def stats(self, name: str = "") -> Any:
        """What a plugin uses of the machine, or every one that runs."""
        return self._json("GET", f"{_OURS}/plugins/{_quoted(name)}/stats" if name else f"{_OURS}/stats")

    def resize(self, name: str, exec_id: str, rows: int, columns: int) -> None:
        """The size of the terminal of an added process."""
        path = f"{_OURS}/plugins/{_quoted(name)}/exec/{_quoted(exec_id)}/resize"
        self._json("POST", path, {"rows": str(rows), "columns": str(columns)})

    @contextmanager
    def execute(self, name: str, start: Mapping[str, object]) -> "Iterator[Execution]":
        """Run a process beside a plugin's own. ``start`` as the API has it; the input is sent while output comes."""
        path, first = f"{_OURS}/plugins/{_quoted(name)}/exec", json.dumps(dict(start)).encode()
        connection = UnixHttpConnection(self._path, self._within)
        try:
            connection.putrequest("POST", path)
            connection.putheader("Transfer-Encoding", "chunked")
            connection.putheader("Content-Type", "application/vnd.moorage.exec")
            connection.endheaders()
            try:
                _send_chunk(connection.sock, bytes([0]) + len(first).to_bytes(4, "big") + first)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before all was read; the answer says why
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _failure(answer)
            yield Execution(connection.sock, answer)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def call(self, name: str, method: str, body: bytes = b"", timeout: float = 0.0) -> tuple[int, bytes]:
        """What a plugin answers to a call: its status, and the body."""
        query = {"method": method, "timeout": f"{timeout:g}"}
        with self._open("POST", f"{_OURS}/plugins/{_quoted(name)}/call", query, body) as answer:
            return int(answer.headers.get("X-Plugin-Status", "200")), answer.read()

    # packages that are here, or come in archives

    def push(self, name: str, to: str = "", auth: str = "") -> "AbstractContextManager[Progress]":
        """Bring it to a registry, under ``to`` or its name."""
        return self._progress(f"/plugins/{_quoted(name)}/push", {"to": to} if to else {}, None, auth)

    def tag(self, name: str, to: str) -> None:
        """Give it a further name."""
        self._json("POST", f"{_OURS}/plugins/{_quoted(name)}/tag", {"to": to})

    def save(self, names: Sequence[str]) -> Iterator[bytes]:
        """An OCI archive of these plugins, in pieces."""
        body, headers = json.dumps({"names": list(names)}).encode(), {"Content-Type": "application/json"}
        with self._open("POST", f"{_OURS}/save", {}, body, headers) as answer:
            while piece := answer.read(_PIECE):
                yield piece

    def load(self, archive: Iterator[bytes], name: str = "") -> Any:
        """Take in an archive's plugins; what became of each. ``name`` is for an archive with one plugin."""
        query = {"name": name} if name else {}
        with self._open("POST", f"{_OURS}/load", query, archive, {"Content-Type": "application/x-tar"}) as answer:
            return decode_answer(answer.read())

    def create_from(
        self, name: str, package: Iterator[bytes], remote: str = "", auth: str = ""
    ) -> "AbstractContextManager[Progress]":
        """Make a plugin of an image: a tar stream of config.json and, without ``remote``, of an OCI layout."""
        query = {"name": name, **({"remote": remote} if remote else {})}
        return self._progress(f"{_OURS}/create", query, package, auth)

    def disk_usage(self) -> Any:
        """What plugins take of the disk."""
        return expect(dict, self._json("GET", f"{_OURS}/df"))

    def prune(self) -> Any:
        """Remove what nothing refers to; what that gave back."""
        return expect(dict, self._json("POST", f"{_OURS}/prune"))

    # how

    def _json(self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None) -> Any:
        raw, headers = None, {}
        if body is not None:
            raw, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        with self._open(method, path, query or {}, raw, headers) as answer:
            data = answer.read()
        return decode_answer(data) if data else None

    def _lines(self, path: str, query: Mapping[str, str]) -> Iterator[Any]:
        with self._open("GET", path, query) as answer:
            for line in answer:
                if line.strip():
                    yield expect(dict, decode_answer(line))

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        target = f"{path}?{urlencode(query)}" if query else path
        connection = UnixHttpConnection(self._path, self._within)
        try:
            try:
                connection.request(method, target, body, dict(headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may refuse before it has read everything; the answer says why
            answer = connection.getresponse()
            if answer.status >= 400:
                raise _failure(answer)
            yield answer
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def _unreachable(self, error: Exception) -> errors.MoorageError:
        if isinstance(error, PermissionError):
            return errors.Denied(f"cannot use {self._path}: permission denied; run this with sudo")
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return errors.Unavailable(
                f"cannot reach moorage at {self._path}: is it running? start it with: moorage serve"
            )
        number = error.errno if isinstance(error, OSError) else None
        why = os.strerror(number) if number else str(error) or "it hung up"
        return errors.Unavailable(f"lost moorage at {self._path}: {why}")


class Execution:
    """One process beside a plugin's own: ``send`` in one thread, ``frames`` in another."""

    def __init__(self, sock: socket.socket, answer: http.client.HTTPResponse) -> None:
        self._socket = sock
        self._answer = answer

    def send(self, data: bytes) -> None:
        """Input for it; none (``b""``) is its end. Raises: OSError where it is over."""
        _send_chunk(self._socket, data)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """What comes: kind and bytes, as the API has them. Raises: Unavailable where the engine goes away."""
        while head := self._answer.read(5):
            kind, length = head[0], int.from_bytes(head[1:], "big")
            data = self._answer.read(length)
            if len(data) < length:
                break
            yield kind, data
            if kind >= 3:
                return
        raise errors.Unavailable("lost moorage while the process ran")


class Progress:
    """A long operation that goes on while its lines are read."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.name: str = answer.headers.get("Docker-Plugin-Name", "")
        """The plugin that it makes or changes."""
        self._answer = answer

    def lines(self) -> Iterator[Any]:
        """Objects with ``status``, and perhaps ``id`` and ``progressDetail``; the last one may have ``aux``, what came
        of it. Raises: what went wrong.
        """
        for raw in self._answer:
            line = expect(dict, decode_answer(raw))
            if "error" in line:
                raise _KINDS.get(line.get("errorDetail", {}).get("code"), errors.MoorageError)(line["error"])
            yield line


def _send_chunk(sock: socket.socket, data: bytes) -> None:
    sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))


def _auth(value: str) -> dict[str, str]:
    return {"X-Registry-Auth": value} if value else {}


def _failure(answer: http.client.HTTPResponse) -> errors.MoorageError:
    raw = answer.read()
    try:
        message = str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = f"the engine answered {answer.status} {answer.reason}"
    return _KINDS.get(answer.status, errors.MoorageError)(message)


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _forced(force: bool) -> dict[str, str]:
    return {"force": "1"} if force else {}


def _filters(filters: Mapping[str, Sequence[str]]) -> str:
    return json.dumps({key: dict.fromkeys(values, True) for key, values in filters.items()})
