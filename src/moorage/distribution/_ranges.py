"""A blob from an offset on: what is requested, and whether what comes is that."""

import re

import aiohttp
from msgspec.structs import replace

from moorage import errors
from moorage.distribution._conversation import RegistryRequest

__all__ = ("bytes_to_skip", "request_range")


def request_range(request: RegistryRequest, offset: int) -> RegistryRequest:
    """The request for the bytes from ``offset`` on."""
    return replace(request, headers={"Range": f"bytes={offset}-"}) if offset else request


def bytes_to_skip(request: RegistryRequest, response: aiohttp.ClientResponse, at: int, size_bytes: int) -> int:
    """How many bytes of a body are to be skipped, after its headers were compared with what was asked for.

    Raises: Invalid where they tell of another size.
    """
    length = response.content_length
    if response.status == 200:
        begin, end = 0, length
    else:
        shape = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if shape is None or int(shape[1]) > at:
            raise errors.Invalid(f"cannot {request.what}: bytes from {at} on were asked for, and others come")
        begin = int(shape[1])
        end = int(shape[3]) if shape[3] != "*" else None
    if end is not None and end != size_bytes:
        raise errors.Invalid(f"cannot {request.what}: it has {end} bytes where {size_bytes} were promised")
    return at - begin
