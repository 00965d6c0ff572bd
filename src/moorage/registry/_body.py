"""Bodies of responses: read within limits of rate, time and size; manifests are checked against their digests."""

import time

import aiohttp
import anyio
import msgspec

from moorage import errors
from moorage._lib.escapes import single_line
from moorage.oci.digest import digest_of, hex_digits
from moorage.oci.manifest import RawManifest, stated_media_type
from moorage.oci.media_types import MANIFESTS_AND_INDEXES
from moorage.registry._connections import TransportError, TransportErrorKind, reason_of
from moorage.timeouts import RegistryTimeouts

__all__ = ("AVERAGE_RATE", "MINIMUM_RATE", "BodyReader", "TimeBudget", "check_manifest", "error_text", "read_bounded")

MINIMUM_RATE = 1024
"""Bytes per second, over each ``Timeouts.registry_stall`` of waiting. A slower peer counts as unavailable: a
modem is faster, and a peer that sends a byte a second would otherwise occupy an operation forever. Only waiting counts,
so a slow local disk is not taken for a slow peer."""

AVERAGE_RATE = 8192
"""Bytes per second, over a whole blob with all retries; see ``TimeBudget``."""

_ERROR_BYTES = 64 * 1024
_VAGUE_TYPES = ("", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream")


class TimeBudget:
    """The seconds that may be spent waiting for one body, all retries together."""

    def __init__(self, timeouts: RegistryTimeouts, size_bytes: int = 0) -> None:
        self.seconds = timeouts.registry_document + size_bytes / AVERAGE_RATE
        self.left = self.seconds


class BodyReader:
    """Reads a body in chunks; fails if it arrives slower than ``MINIMUM_RATE`` or exceeds its time budget."""

    def __init__(self, response: aiohttp.ClientResponse, window: float, time_budget: TimeBudget) -> None:
        self._response = response
        self._window = window
        self._time_budget = time_budget
        self._waited = 0.0
        self._received = 0

    async def chunk(self) -> bytes:
        """The next bytes, b"" at the end. Raises: TransportError for a broken or too slow connection."""
        host = self._response.url.host
        while True:
            began = time.monotonic()
            data: bytes | None = None
            try:
                with anyio.move_on_after(min(self._window - self._waited, self._time_budget.left)):
                    data = await self._response.content.readany()
            except (aiohttp.ClientError, OSError) as error:
                kind = TransportErrorKind.BROKEN
                raise TransportError(f"the connection to {host} broke: {reason_of(error)}", kind) from error
            self._count(time.monotonic() - began, data)
            if data is not None:
                return data

    def _count(self, waited: float, data: bytes | None) -> None:
        """Compare the received bytes with the minimum. Raises: TransportError if they are too few."""
        host, is_end = self._response.url.host, data == b""
        self._waited += waited
        self._time_budget.left -= waited
        self._received += len(data or b"")
        if self._time_budget.left <= 0 and not is_end:
            raise TransportError(
                f"{host} does not send all of it within {self._time_budget.seconds:.0f} s", TransportErrorKind.REFUSED
            )
        if self._waited >= self._window:
            if self._received < MINIMUM_RATE * self._window and not is_end:
                raise TransportError(f"{host} sends less than {MINIMUM_RATE} bytes a second", TransportErrorKind.BROKEN)
            self._waited, self._received = 0.0, 0


async def read_bounded(
    response: aiohttp.ClientResponse, limit: int, window: float, time_budget: TimeBudget
) -> bytes | None:
    """The whole body, None if it has more than ``limit`` bytes. Raises: TransportError."""
    if response.content_length is not None and response.content_length > limit:
        return None
    reader, data = BodyReader(response, window, time_budget), bytearray()
    while chunk := await reader.chunk():
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


async def error_text(response: aiohttp.ClientResponse, timeouts: RegistryTimeouts) -> str:
    """The message in the body of an error response, as one line; "" if there is none."""
    try:
        body = await read_bounded(response, _ERROR_BYTES, timeouts.registry_stall, TimeBudget(timeouts))
        document = msgspec.json.decode(body or b"")
    except (TransportError, ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    listed = document.get("errors")
    entries = listed if isinstance(listed, list) else [document]
    texts = [text for entry in entries if isinstance(entry, dict) and (text := _text(entry))]
    return single_line("; ".join(dict.fromkeys(texts)))


def _text(entry: dict[str, object]) -> str:
    names = ("message", "error_description", "details", "error", "code")
    found = (value for name in names if isinstance(value := entry.get(name), str) and value)
    return next(found, "")


def check_manifest(action: str, data: bytes, response: aiohttp.ClientResponse, target: str) -> RawManifest:
    """The manifest, if its bytes are what was requested and announced.

    Raises:
        errors.InvalidResponse: they have another digest, are not a JSON object, or state another media type than the
            header.
        errors.Unsupported: the media type is not of a manifest or an index.
    """
    announced = response.headers.get("Docker-Content-Digest", "")
    for expected in (target if ":" in target else "", announced):
        algorithm = expected.partition(":")[0]
        if hex_digits(algorithm) and (actual := digest_of(data, algorithm)) != expected:
            raise errors.InvalidResponse(
                f"cannot {action}: the content has the digest {actual}, not {single_line(expected)}"
            )
    digest = target if ":" in target else digest_of(data)
    return RawManifest(data, _media_type(action, data, response.headers.get("Content-Type", "")), digest)


def _media_type(action: str, data: bytes, content_type: str) -> str:
    """The media type that header and body agree on; the body decides if the header is generic."""
    header = content_type.partition(";")[0].strip().lower()
    try:
        stated = stated_media_type(data, f"cannot {action}")
    except errors.Invalid as error:
        raise errors.InvalidResponse(str(error)) from error
    media_type = (stated if isinstance(stated, str) else "") if header in _VAGUE_TYPES else header
    if media_type not in MANIFESTS_AND_INDEXES:
        raise errors.Unsupported(
            f"cannot {action}: a manifest of type {single_line(media_type) or 'unknown'} is not understood"
        )
    if stated is not None and stated != media_type:
        raise errors.InvalidResponse(f"cannot {action}: it says of itself that it is another thing than {media_type}")
    return media_type
