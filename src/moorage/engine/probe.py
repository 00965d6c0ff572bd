"""Whether a plugin listens, and what it says it implements."""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from moorage._lib.backoff import pauses

__all__ = ("HTTP_PROTOCOLS", "Activation", "activate", "wait_until_listening")

HTTP_PROTOCOLS = ("", "moby.plugins.http/v1")
"""Values of ``interface.protocolScheme`` for a plugin that speaks HTTP. Others are never spoken to."""

_FIRST_LOOK, _LONGEST_PAUSE = 0.002, 0.05  # seconds
_ANSWER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Activation:
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
        if _accepts(path):
            return True
        await anyio.sleep(pause)
    raise AssertionError("the pauses never end")


def _accepts(path: str) -> bool:
    # Not through a link: the plugin makes what stands there, and we are root on the host.
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except OSError:
        return False
    # On a unix socket connect() does not wait: it succeeds, is refused, or says that the backlog is full.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


async def activate(path: str, within: float) -> Activation:
    """Ask a plugin that speaks HTTP what it implements, waiting at most ``within`` seconds.

    Source: POST /Plugin.Activate answers ``{"Implements": ["VolumeDriver", ...]}``.
    """
    import aiohttp
    import msgspec

    try:
        with anyio.fail_after(within):
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=path)) as session,
                session.post(
                    "http://plugin.moby.localhost/Plugin.Activate",
                    headers={"Accept": "application/vnd.docker.plugins.v1.2+json"},
                ) as response,
            ):
                if response.status != 200:
                    return Activation(None, f"answers {response.status} to /Plugin.Activate")
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _ANSWER_BYTES:
                        return Activation(None, f"answers /Plugin.Activate with more than {_ANSWER_BYTES} bytes")
                answer = msgspec.json.decode(body)
    except TimeoutError:
        return Activation(None, f"does not answer /Plugin.Activate within {within:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return Activation(None, f"does not answer /Plugin.Activate: {error}")
    except msgspec.DecodeError as error:
        return Activation(None, f"answers /Plugin.Activate with something that is no JSON: {error}")
    return _read_activation(answer)


def _read_activation(answer: object) -> Activation:
    implements = answer.get("Implements") if isinstance(answer, dict) else None
    if implements is None:
        return Activation((), "")
    if not isinstance(implements, list) or not all(isinstance(each, str) for each in implements):
        return Activation(None, "answers /Plugin.Activate with an Implements that is no list of names")
    return Activation(tuple(implements))
