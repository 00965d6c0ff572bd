"""Readiness of a plugin: whether its socket accepts connections, and what it implements."""

from collections.abc import Callable

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.escapes import escape
from moorage._lib.json_document import decode_json
from moorage.host.sockets import PluginSocket
from moorage.runs.http_call import call

__all__ = ("HTTP_PROTOCOLS", "Activation", "activate", "describe_other_sockets", "wait_until_listening")

HTTP_PROTOCOLS = ("", "moby.plugins.http/v1")
"""Values of ``interface.protocolScheme`` of a plugin that speaks HTTP. No other is ever called."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05  # seconds between checks
_ANSWER_BYTES = 1024 * 1024


class Activation(Struct, frozen=True):
    """The answer to /Plugin.Activate. Information, never a condition: many plugins do not answer."""

    implements: tuple[str, ...] | None
    """None where there was no usable answer."""
    problem: str = ""
    """What was wrong with the answer; empty where nothing was."""


async def wait_until_listening(socket: PluginSocket, give_up: Callable[[], bool]) -> bool:
    """True as soon as the socket accepts a connection; False once ``give_up()`` is true before.

    An existing file is not enough: bind() makes it before listen(). Checked every 2 ms at first, every 50 ms later.
    """
    for pause in pauses(_FIRST_PAUSE, _LONGEST_PAUSE):
        if give_up():
            return False
        if socket.is_listening():
            return True
        await anyio.sleep(pause)
    raise AssertionError("the pauses never end")


def describe_other_sockets(socket: PluginSocket) -> str:
    """A hint where the plugin made a socket of another name; else empty. Blocks, for a bounded time."""
    names = ", ".join(map(escape, socket.others()))
    return names and f"it made {names} there instead: interface.socket in config.json must be the name of its socket"


async def activate(socket: PluginSocket, within: float) -> Activation:
    """What a plugin that speaks HTTP implements, queried within this many seconds.

    Source: POST /Plugin.Activate answers ``{"Implements": ["VolumeDriver", ...]}``.
    """
    try:
        answer = await call(socket, "Plugin.Activate", b"", within, most_bytes=_ANSWER_BYTES)
    except errors.MoorageError as error:
        return Activation(None, str(error))
    if answer.status != 200:
        return Activation(None, f"answers {answer.status} to /Plugin.Activate")
    try:
        return _read_activation(decode_json(answer.body))
    except ValueError as error:
        return Activation(None, f"answers /Plugin.Activate with invalid JSON: {error}")


def _read_activation(answer: object) -> Activation:
    implements = answer.get("Implements") if isinstance(answer, dict) else None
    if implements is None:
        return Activation((), "")
    if not isinstance(implements, list) or not all(isinstance(each, str) for each in implements):
        return Activation(None, "answers /Plugin.Activate with an Implements that is not a list of names")
    return Activation(tuple(implements))
