"""The protocol between an engine and its log keeper: one packet per message, over a SOCK_SEQPACKET unix socket.

The keeper first sends ``GREETING``. Then, in any order and number:

=====================================  ==========================================================================
engine to keeper                       keeper to engine
=====================================  ==========================================================================
``A`` key, directory, bytes, files,    ``a`` key: it drains both, already or from now on. ``r`` key, reason: it
and two descriptors                    cannot.
``F`` key                              ``f`` key: incomplete lines are in the file, as pieces.
``Q``                                  nothing: it writes all data, closes everything and exits.
nothing                                ``d`` key: both streams have ended and are in the file completely.
=====================================  ==========================================================================

Fields are UTF-8 separated by NUL. Any other packet closes the connection and has no other effect.

The greeting and ``Q`` are the same in every version: an engine stops a keeper of another version, older or newer, and
hands the streams to a keeper of its own version. No output is lost: unread data stays in the FIFOs.
"""

from typing import NamedTuple

__all__ = ("GREETING", "MAGIC", "PACKET_BYTES", "QUIT", "KeeperRequest", "pack", "parse_request", "unpack")

MAGIC = b"moorage log keeper "
GREETING = MAGIC + b"\x01"
"""The last byte is the version."""

QUIT = b"Q"
PACKET_BYTES = 16 * 1024
"""Longer than any packet: a path has at most 4096 bytes."""


class KeeperRequest(NamedTuple):
    """A request of an engine: ``verb`` is A, F or Q; only A has all fields."""

    verb: str
    key: str = ""
    directory: str = ""
    most_bytes: int = 0
    files: int = 0


def pack(verb: str, *fields: object) -> bytes:
    """One message."""
    return verb.encode() + "\0".join(map(str, fields)).encode(errors="surrogateescape")


def unpack(packet: bytes) -> tuple[str, list[str]]:
    """Verb and fields of a message. Raises: ValueError for an empty packet."""
    text = packet.decode(errors="surrogateescape")
    if not text:
        raise ValueError("empty")
    return text[0], text[1:].split("\0")


def parse_request(packet: bytes) -> KeeperRequest:
    """The request in a packet. Raises: ValueError for any other packet."""
    if packet == QUIT:
        return KeeperRequest("Q")
    verb, fields = unpack(packet)
    if verb == "F" and len(fields) == 1 and fields[0]:
        return KeeperRequest("F", fields[0])
    if verb == "A" and len(fields) == 4:
        key, directory, most_bytes, files = fields
        request = KeeperRequest("A", key, directory, int(most_bytes), int(files))
        if key and directory.startswith("/") and request.most_bytes > 0 and 0 < request.files <= 1000:
            return request
    raise ValueError(f"no request: {packet[:80]!r}")
