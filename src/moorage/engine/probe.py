"""Whether a plugin listens, and what it says it implements."""

from collections.abc import Callable

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.escaping import escape
from moorage._lib.json_document import decode_json
from moorage.engine.calls import call
from moorage.host.sockets import PluginSocket

__all__ = ("HTTP_PROTOCOLS", "Activation", "activate", "explain_socket", "wait_until_listening")

HTTP_PROTOCOLS = ("", "moby.plugins.http/v1")
"""Values of ``interface.protocolScheme`` for a plugin that speaks HTTP. Others are never spoken to."""

_FIRST_LOOK, _LONGEST_PAUSE = 0.002, 0.05  # seconds
_ANSWER_BYTES = 1024 * 1024


class Activation(Struct, frozen=True):
    """What a plugin answered to /Plugin.Activate. Information, never a condition: many real ones answer nothing."""

    implements: tuple[str, ...] | None
    problem: str = ""


async def wait_until_listening(socket: PluginSocket, give_up: Callable[[], bool]) -> bool:
    """True as soon as the socket accepts a connection; False when ``give_up()`` says so before.

    A file alone is not enough: it is there before its owner listens. Checked every 2 ms first, every 50 ms later.
    """
    for pause in pauses(_FIRST_LOOK, _LONGEST_PAUSE):
        if give_up():
            return False
        if socket.is_listening():
            return True
        await anyio.sleep(pause)
    raise AssertionError("the pauses never end")


def explain_socket(socket: PluginSocket) -> str:
    """Why nothing listens there, where the plugin made another socket (blocking, bounded); else nothing."""
    names = ", ".join(map(escape, socket.others()))
    return names and f"it made {names} there instead: interface.socket in config.json must be the name of its socket"


async def activate(socket: PluginSocket, within: float) -> Activation:
    """Ask a plugin that speaks HTTP what it implements, waiting at most ``within`` seconds.

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
        return Activation(None, f"answers /Plugin.Activate with something that is no JSON: {error}")


def _read_activation(answer: object) -> Activation:
    implements = answer.get("Implements") if isinstance(answer, dict) else None
    if implements is None:
        return Activation((), "")
    if not isinstance(implements, list) or not all(isinstance(each, str) for each in implements):
        return Activation(None, "answers /Plugin.Activate with an Implements that is no list of names")
    return Activation(tuple(implements))
