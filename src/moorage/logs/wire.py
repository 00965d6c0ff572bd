"""What an engine and its log keeper say to each other: one packet a message, over a unix socket of kind SEQPACKET.

The keeper begins with ``GREETING``. Then, in any order and number:

=====================================  ==========================================================================
engine to keeper                       keeper to engine
=====================================  ==========================================================================
``A`` key, directory, bytes, files,    ``a`` key: it drains both, and did already or does from now on. ``r`` key,
with two descriptors beside it         why: it cannot.
``F`` key                              ``f`` key: what was no whole line yet is in the file, as pieces.
``Q``                                  nothing: it writes what it has, closes everything and ends.
nothing                                ``d`` key: both streams have ended, and all of them is in the file.
=====================================  ==========================================================================

Fields are UTF-8 with NUL between them. A packet that is none of these ends the connection, and nothing else.

The greeting and ``Q`` stay as they are in every version: an engine that meets a keeper of another version, older or
newer, ends it and hands the streams to one of its own. Nothing is lost by that: the FIFOs keep what nobody reads.
"""

from typing import NamedTuple

__all__ = ("GREETING", "MAGIC", "PACKET_BYTES", "QUIT", "Request", "pack", "parse_request", "unpack")

MAGIC = b"moorage log keeper "
GREETING = MAGIC + b"\x01"
"""The last byte is the version."""

QUIT = b"Q"
PACKET_BYTES = 16 * 1024
"""More than the longest packet has: a path has at most 4096 bytes."""


class Request(NamedTuple):
    """What the engine asks for: ``verb`` is one of A, F and Q; only A has all fields."""

    verb: str
    key: str = ""
    directory: str = ""
    most_bytes: int = 0
    files: int = 0


def pack(verb: str, *fields: object) -> bytes:
    """One message."""
    return verb.encode() + "\0".join(map(str, fields)).encode(errors="surrogateescape")


def unpack(packet: bytes) -> tuple[str, list[str]]:
    """Verb and fields of a message. Raises: ValueError where it is none."""
    text = packet.decode(errors="surrogateescape")
    if not text:
        raise ValueError("empty")
    return text[0], text[1:].split("\0")


def parse_request(packet: bytes) -> Request:
    """What the engine asks for. Raises: ValueError where it is nothing that can be asked for."""
    if packet == QUIT:
        return Request("Q")
    verb, fields = unpack(packet)
    if verb == "F" and len(fields) == 1 and fields[0]:
        return Request("F", fields[0])
    if verb == "A" and len(fields) == 4:
        key, directory, most_bytes, files = fields
        request = Request("A", key, directory, int(most_bytes), int(files))
        if key and directory.startswith("/") and request.most_bytes > 0 and 0 < request.files <= 1000:
            return request
    raise ValueError(f"no request: {packet[:80]!r}")
