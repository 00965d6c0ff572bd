"""Digests of content: ``algorithm:hex``. Checked before they go into a URL, a path or a label.

Source: image-spec descriptor.md, Digests. Both registered algorithms are supported, and sha384, which cosign uses.
"""

import hashlib
import re

from moorage import errors
from moorage._lib.escapes import single_line

__all__ = ("check_digest", "digest_of", "encoded", "hex_digits", "is_digest_of", "new_hash")

_ALGORITHMS = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_HEX_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile("[0-9a-f]+")


def hex_digits(algorithm: str) -> int | None:
    """The number of hexadecimal digits of this algorithm's digests; None for one that is not supported."""
    return _HEX_DIGITS.get(algorithm)


def check_digest(digest: str) -> str:
    """The digest, if it is one that can be verified.

    Raises:
        errors.Invalid: it is not ``sha256:``, ``sha384:`` or ``sha512:`` with as many lower-case
            hexadecimal digits.
    """
    algorithm, _, digits = digest.partition(":")
    if len(digits) != _HEX_DIGITS.get(algorithm) or not _HEX.fullmatch(digits):
        raise errors.Invalid(
            f"cannot use {single_line(digest)!r} as a digest: it must be sha256:, sha384: or sha512: and hex"
        )
    return digest


def encoded(digest: str) -> str:
    """The hexadecimal part of a digest."""
    return digest.partition(":")[2]


def new_hash(digest: str) -> "hashlib._Hash":
    """A new hash object of the algorithm of a digest.

    Raises:
        errors.Invalid: it is not a digest.
    """
    return _ALGORITHMS[check_digest(digest).partition(":")[0]]()


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of these bytes; ``algorithm`` is a supported one."""
    return f"{algorithm}:{_ALGORITHMS[algorithm](data).hexdigest()}"


def is_digest_of(digest: str, data: bytes) -> bool:
    """Whether the bytes have this digest.

    Raises:
        errors.Invalid: it is not a digest.
    """
    return digest_of(data, check_digest(digest).partition(":")[0]) == digest
