"""Whether a plugin listens, and what it says it implements."""

from collections.abc import Callable

import anyio
from msgspec import Struct

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.unix_socket import accepts, is_socket
from moorage.engine.calls import call

__all__ = ("HTTP_PROTOCOLS", "Activation", "activate", "wait_until_listening")

HTTP_PROTOCOLS = ("", "moby.plugins.http/v1")
"""Values of ``interface.protocolScheme`` for a plugin that speaks HTTP. Others are never spoken to."""

_FIRST_LOOK, _LONGEST_PAUSE = 0.002, 0.05  # seconds
_ANSWER_BYTES = 1024 * 1024


class Activation(Struct, frozen=True):
    """What a plugin answered to /Plugin.Activate. Information, never a condition: many real ones answer nothing."""

    implements: tuple[str, ...] | None
    problem: str = ""


async def wait_until_listening(path: str, give_up: Callable[[], bool]) -> bool:
    """True as soon as the unix socket accepts a connection; False when ``give_up()`` says so before.

    A file alone is not enough: it is there before its owner listens. Looked at every 2 ms first, 50 ms later.
    """
    for pause in pauses(_FIRST_LOOK, _LONGEST_PAUSE):
        if give_up():
            return False
        if is_socket(path) and accepts(path):
            return True
        await anyio.sleep(pause)
    raise AssertionError("the pauses never end")


async def activate(path: str, within: float) -> Activation:
    """Ask a plugin that speaks HTTP what it implements, waiting at most ``within`` seconds.

    Source: POST /Plugin.Activate answers ``{"Implements": ["VolumeDriver", ...]}``.
    """
    import msgspec

    try:
        answer = await call(path, "Plugin.Activate", b"", within, most_bytes=_ANSWER_BYTES)
    except errors.MoorageError as error:
        return Activation(None, str(error))
    if answer.status != 200:
        return Activation(None, f"answers {answer.status} to /Plugin.Activate")
    try:
        return _read_activation(msgspec.json.decode(answer.body))
    except msgspec.DecodeError as error:
        return Activation(None, f"answers /Plugin.Activate with something that is no JSON: {error}")


def _read_activation(answer: object) -> Activation:
    implements = answer.get("Implements") if isinstance(answer, dict) else None
    if implements is None:
        return Activation((), "")
    if not isinstance(implements, list) or not all(isinstance(each, str) for each in implements):
        return Activation(None, "answers /Plugin.Activate with an Implements that is no list of names")
    return Activation(tuple(implements))
