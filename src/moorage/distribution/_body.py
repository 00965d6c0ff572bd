"""Bodies of answers: how fast they must come, how long they may take in all, and how many bytes they may have."""

import time

import aiohttp
import anyio
import msgspec

from moorage.distribution._errors import TransportError, TransportErrorKind, reason_of
from moorage.distribution._status import clean
from moorage.timeouts import Timeouts

__all__ = ("AVERAGE_RATE", "MINIMUM_RATE", "Allowance", "BodyReader", "error_text", "read_bounded")

MINIMUM_RATE = 1024
"""Bytes per second, over each ``Timeouts.registry_stall`` of waiting. A peer that is slower counts as unavailable: a
modem is faster, and one that sends a byte a second would otherwise occupy an operation forever. Only the time that we
wait counts, so a slow disk on our side is no fault of the peer."""

AVERAGE_RATE = 8192
"""Bytes per second, over a whole blob with all its tries; see ``Allowance``."""

_ERROR_BYTES = 64 * 1024


class Allowance:
    """How many seconds may be spent waiting for the bytes of one thing, all tries together."""

    def __init__(self, timeouts: Timeouts, size_bytes: int = 0) -> None:
        self.seconds = timeouts.registry_document + size_bytes / AVERAGE_RATE
        self.left = self.seconds


class BodyReader:
    """Reads a body piece by piece and stops where it comes slower than ``MINIMUM_RATE``, or takes too long in all."""

    def __init__(self, response: aiohttp.ClientResponse, window: float, allowance: Allowance) -> None:
        self._response = response
        self._window = window
        self._allowance = allowance
        self._waited = 0.0
        self._received = 0

    async def piece(self) -> bytes:
        """The next bytes, as many as there are; none at the end. Raises: TransportError."""
        host = self._response.url.host
        while True:
            began = time.monotonic()
            data: bytes | None = None
            try:
                with anyio.move_on_after(min(self._window - self._waited, self._allowance.left)):
                    data = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                kind = TransportErrorKind.BROKEN
                raise TransportError(f"the connection to {host} broke: {reason_of(error)}", kind) from error
            self._count(time.monotonic() - began, data)
            if data is not None:
                return data

    def _count(self, waited: float, data: bytes | None) -> None:
        """Compare what came with what must have come by now. Raises: TransportError."""
        host, is_end = self._response.url.host, data == b""
        self._waited += waited
        self._allowance.left -= waited
        self._received += len(data or b"")
        if self._allowance.left <= 0 and not is_end:
            raise TransportError(
                f"{host} does not send all of it within {self._allowance.seconds:.0f} s", TransportErrorKind.REFUSED
            )
        if self._waited >= self._window:
            if self._received < MINIMUM_RATE * self._window and not is_end:
                raise TransportError(f"{host} sends less than {MINIMUM_RATE} bytes a second", TransportErrorKind.BROKEN)
            self._waited, self._received = 0.0, 0


async def read_bounded(
    response: aiohttp.ClientResponse, limit: int, window: float, allowance: Allowance
) -> bytes | None:
    """The whole body, None where it has more than ``limit`` bytes. Raises: TransportError."""
    if response.content_length is not None and response.content_length > limit:
        return None
    reader, data = BodyReader(response, window, allowance), bytearray()
    while piece := await reader.piece():
        data += piece
        if len(data) > limit:
            return None
    return bytes(data)


async def error_text(response: aiohttp.ClientResponse, timeouts: Timeouts) -> str:
    """What a registry or token server says in the body of its refusal, as one line; "" where it says nothing."""
    try:
        body = await read_bounded(response, _ERROR_BYTES, timeouts.registry_stall, Allowance(timeouts))
        document = msgspec.json.decode(body or b"")
    except (TransportError, ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    listed = document.get("errors")
    entries = listed if isinstance(listed, list) else [document]
    texts = [text for entry in entries if isinstance(entry, dict) and (text := _text(entry))]
    return clean("; ".join(dict.fromkeys(texts)))


def _text(entry: dict[str, object]) -> str:
    names = ("message", "error_description", "details", "error", "code")
    found = (value for name in names if isinstance(value := entry.get(name), str) and value)
    return next(found, "")
