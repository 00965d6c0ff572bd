"""Requests to the engine over its unix socket: one connection each, failures by kind."""

import http.client
import json
import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar
from urllib.parse import quote, urlencode

from moorage import errors
from moorage.api.schema.base import to_document
from moorage.client.answers import decode_answer
from moorage.client.failures import connection_failure, failure_of
from moorage.client.host import DEFAULT_HOST, parse_ssh, socket_of
from moorage.client.unix_http import SshHttpConnection, UnixHttpConnection

__all__ = ("OWN", "EngineTransport", "accept_answer", "encode_body", "encode_filters", "quoted")

log = logging.getLogger(__name__)

OWN = "/moorage/v1"
"""Prefix of the calls that Docker's API does not have."""

Value = TypeVar("Value")
Body = bytes | Iterator[bytes] | None


def quoted(name: str) -> str:
    """A name as part of a path."""
    return quote(name, safe="")


def encode_filters(filters: Mapping[str, Sequence[str]] | None) -> dict[str, str]:
    """The query of filters; empty for none."""
    if not filters:
        return {}
    return {"filters": json.dumps({key: dict.fromkeys(values, True) for key, values in filters.items()})}


class EngineTransport:
    """Requests to one engine.

    Args:
        host: ``unix://PATH``, or an absolute path
        within: seconds that one step of an answer may take; None where only the engine bounds it
    """

    def __init__(self, host: str = DEFAULT_HOST, within: float | None = None) -> None:
        """Nothing is connected yet.

        Raises:
            errors.Invalid: the host is no socket
        """
        self._ssh = parse_ssh(host)
        self._path = host if self._ssh else socket_of(host)
        self._within = within
        self._under_way: set[http.client.HTTPConnection] = set()
        self._is_aborted = False

    def abort(self) -> None:
        """End every call that is under way in other threads, and refuse further ones: they raise Unavailable.

        May be repeated.
        """
        self._is_aborted = True
        for connection in list(self._under_way):
            sock = connection.sock
            if sock is not None:
                with suppress(OSError):  # it is closed already
                    sock.shutdown(socket.SHUT_RDWR)

    def _get(self, kind: type[Value], path: str, query: Mapping[str, str] | None = None, auth: str = "") -> Value:
        with self._open("GET", path, query, None, _auth(auth)) as answer:
            return decode_answer(answer.read(), kind)

    def _send(
        self,
        kind: type[Value],
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        auth: str = "",
    ) -> Value:
        """A request with an object as its body, and its answer."""
        raw, headers = encode_body(body, auth)
        with self._open(method, path, query, raw, headers) as answer:
            return decode_answer(answer.read(), kind)

    def _do(self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None) -> None:
        """A request whose answer is empty."""
        raw, headers = encode_body(body)
        with self._open(method, path, query, raw, headers) as answer:
            answer.read()

    def _lines(self, kind: type[Value], path: str, query: Mapping[str, str]) -> Iterator[Value]:
        with self._open("GET", path, query) as answer:
            for line in answer:
                if line.strip():
                    yield decode_answer(line, kind)

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        target = f"{path}?{urlencode(query)}" if query else path
        began = time.monotonic()
        log.debug("%s %s on %s", method, path, self._path)  # without the query, which may have secrets
        with self._connect() as connection:
            try:
                connection.request(method, target, body, dict(headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may refuse before it has read everything; the answer has the reason
            answer = connection.getresponse()
            log.debug("%s %s: %d after %.3f s", method, path, answer.status, time.monotonic() - began)
            yield accept_answer(answer)

    @contextmanager
    def _connect(self) -> Iterator[http.client.HTTPConnection]:
        connection: UnixHttpConnection | SshHttpConnection
        if self._ssh is None:
            connection = UnixHttpConnection(self._path, self._within)
        else:
            connection = SshHttpConnection(self._ssh, self._within)
        self._under_way.add(connection)
        try:
            if self._is_aborted:
                reason = "the call was aborted"
                raise errors.Unavailable(f"lost moorage at {self._path}: {reason}")
            yield connection
        except (OSError, http.client.HTTPException) as cause:
            is_cut = isinstance(cause, http.client.RemoteDisconnected | http.client.IncompleteRead)
            error = ConnectionResetError() if is_cut else cause  # those count bytes; "it hung up" is what happened
            if isinstance(connection, SshHttpConnection):
                raise _unreachable_by_ssh(self._path, error, connection) from cause
            raise connection_failure(self._path, error) from cause
        finally:
            self._under_way.discard(connection)
            connection.close()


def _unreachable_by_ssh(host: str, error: Exception, connection: SshHttpConnection) -> errors.Unavailable:
    if isinstance(error, FileNotFoundError):
        return errors.Unavailable(f"cannot reach moorage at {host}: the program ssh is not installed")
    connection.close()
    status = connection.status
    if status == 255:
        return errors.Unavailable(f"cannot reach moorage at {host}: ssh cannot connect")
    if status == 127:
        return errors.Unavailable(f"cannot reach moorage at {host}: the command moorage is not installed there")
    return errors.Unavailable(f"lost moorage at {host}: {str(error) or 'it hung up'}")


def accept_answer(answer: http.client.HTTPResponse) -> http.client.HTTPResponse:
    """The answer, if it is a success.

    Raises:
        errors.MoorageError: by kind, with the message of the engine
    """
    if answer.status < 400:
        return answer
    raise failure_of(answer.status, answer.reason, answer.read())


def encode_body(body: object, auth: str = "") -> tuple[bytes | None, dict[str, str]]:
    """An object as a body of JSON with its headers; None is no body."""
    if body is None:
        return None, _auth(auth)
    return json.dumps(to_document(body)).encode(), {"Content-Type": "application/json", **_auth(auth)}


def _auth(value: str) -> dict[str, str]:
    return {"X-Registry-Auth": value} if value else {}
