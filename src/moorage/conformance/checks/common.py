"""Checks for plugins of every kind: activation, and HTTP as dockerd and podman speak it."""

import json
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio.abc import UNIXSocketStream

from moorage.conformance.check import CheckFailed, ConformanceCheck, PluginCalls, require
from moorage.conformance.exchange import ACCEPT
from moorage.plugins.activation import find_mismatch

__all__ = ("common_checks",)

_CALLS = 1000
_PAUSE = 0.005  # seconds between two attempts to connect
_OTHER_SECONDS = 10.0
_STOP_SECONDS = 10.0
"""From SIGTERM to SIGKILL, with dockerd and by default with Moorage."""


def common_checks(harmless: str, arguments: dict[str, object]) -> tuple[ConformanceCheck, ...]:
    """The checks, with a method of the kind that changes nothing, and arguments with which it succeeds."""
    body = json.dumps(arguments).encode()

    def bind(check: Callable[[PluginCalls, str, bytes], None]) -> Callable[[PluginCalls], None]:
        return lambda plugin: check(plugin, harmless, body)

    without_arguments = () if arguments else (ConformanceCheck("C03", "answers a call without a body", bind(_no_body)),)
    return (
        ConformanceCheck("C01", "answers Plugin.Activate with the kinds of its config", _activate),
        ConformanceCheck("C02", "answers requests without Content-Type", bind(_no_content_type)),
        *without_arguments,
        ConformanceCheck("C04", "refuses an unknown method, and serves on", bind(_unknown_method)),
        ConformanceCheck("C05", "refuses a body that is not JSON, and serves on", bind(_no_json)),
        ConformanceCheck("C06", "answers several calls over one connection", bind(_keep_alive)),
        ConformanceCheck("C07", f"answers {_CALLS:,} calls side by side", bind(_side_by_side)),
        ConformanceCheck("C08", "serves others while a caller sends half a request", bind(_slow_caller)),
        ConformanceCheck("C09", "exits within its time after SIGTERM", _terminate, needs_restart=True),
    )


def _activate(plugin: PluginCalls) -> None:
    reply = plugin.raw("Plugin.Activate", None)
    require(reply.status == 200, f"Plugin.Activate must answer 200; the answer is {reply}")
    document = reply.document
    found = document.get("Implements") if isinstance(document, dict) else None
    is_list = isinstance(found, list) and all(isinstance(each, str) for each in found)
    require(is_list, f'the answer to Plugin.Activate must have a list "Implements"; it is {reply}')
    mismatch = find_mismatch(plugin.target.types, found or [])
    require(not mismatch, mismatch)


def _no_content_type(plugin: PluginCalls, method: str, body: bytes) -> None:
    reply = plugin.raw(method, body)
    require(reply.is_success, f"{method} must succeed without Content-Type, which dockerd never sends; it is {reply}")


def _no_body(plugin: PluginCalls, method: str, _: bytes) -> None:
    reply = plugin.raw(method, None)
    require(reply.is_success, f"{method} must succeed without a body, as podman and dockerd call it; it is {reply}")


def _unknown_method(plugin: PluginCalls, method: str, body: bytes) -> None:
    reply = plugin.raw("NoSuchKind.NoSuchMethod", b"{}")
    require(reply.status != 200, f"an unknown method must not be answered with 200; the answer is {reply}")
    _no_content_type(plugin, method, body)


def _no_json(plugin: PluginCalls, method: str, body: bytes) -> None:
    try:
        plugin.raw(method, b'{"Name": ')
    except Exception as error:
        raise CheckFailed(f"a body that is not JSON must be answered; instead: {error!r}") from error
    _no_content_type(plugin, method, body)


def _keep_alive(plugin: PluginCalls, method: str, body: bytes) -> None:
    connection = plugin.connect()
    try:
        for number in range(3):
            try:
                reply = connection.call(f"/{plugin.prefix}.{method}", body)
            except OSError as error:
                raise CheckFailed(f"call {number + 1} over one connection is not answered: {error!r}") from error
            require(reply.is_success, f"call {number + 1} over one connection must succeed; it is {reply}")
    finally:
        connection.close()


def _slow_caller(plugin: PluginCalls, method: str, body: bytes) -> None:
    async def run() -> None:
        async with await anyio.connect_unix(plugin.target.socket) as slow:
            await slow.send(f"POST /{plugin.prefix}.{method} HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{{".encode())
            await anyio.to_thread.run_sync(lambda: _no_content_type(other, method, body))

    other = PluginCalls(plugin.target, plugin.prefix, min(plugin.seconds, _OTHER_SECONDS))
    try:
        anyio.run(run)
    except TimeoutError as error:
        raise CheckFailed(
            f"a caller that sends half a request must not block others; {method} of another caller is not answered "
            f"within {other.seconds:g} s"
        ) from error


def _side_by_side(plugin: PluginCalls, method: str, body: bytes) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in ACCEPT.items())
    request = (
        f"POST /{plugin.prefix}.{method} HTTP/1.1\r\n{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    failures: list[str] = []

    async def one() -> None:
        try:
            answer = await _answer(plugin.target.socket, request)
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as error:
            failures.append(repr(error))
            return
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            failures.append(repr(answer[:100]))

    async def run() -> None:
        with anyio.move_on_after(plugin.seconds) as scope:
            async with anyio.create_task_group() as tasks:
                for _ in range(_CALLS):
                    tasks.start_soon(one)
        if scope.cancelled_caught:
            failures.append(f"not all are answered within {plugin.seconds:g} s")

    anyio.run(run)
    require(not failures, f"{len(failures)} of {_CALLS:,} calls side by side failed, the first with {failures[:1]}")


async def _connect(path: Path) -> UNIXSocketStream:
    while True:
        try:
            return await anyio.connect_unix(path)
        except BlockingIOError:  # its backlog is full; a thread would wait in connect(2)
            await anyio.sleep(_PAUSE)


async def _answer(path: Path, request: bytes) -> bytes:
    """The answer until the plugin closes the connection. Raises: OSError."""
    async with await _connect(path) as stream:
        await stream.send(request)
        parts: list[bytes] = []
        try:
            while True:
                parts.append(await stream.receive())
        except anyio.EndOfStream:
            return b"".join(parts)


def _terminate(plugin: PluginCalls) -> None:
    seconds = plugin.target.stop()
    require(
        seconds < _STOP_SECONDS,
        f"SIGTERM must make it exit within {_STOP_SECONDS:g} s; it took {seconds:.1f} s, which is SIGKILL's work. The "
        "kernel ignores signals of process 1 of a container that has no handler for them: handle SIGTERM",
    )
