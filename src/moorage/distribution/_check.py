"""Whether what a registry sent is what was asked for: digests, and media types of manifests."""

import hashlib
import re

import aiohttp
import msgspec
from msgspec import Struct

from moorage import errors
from moorage._lib.values import repr_without
from moorage.distribution._conversation import RegistryRequest
from moorage.distribution._status import clean

__all__ = ("MANIFEST_LIMIT", "MANIFEST_TYPES", "Manifest", "check_digest", "check_manifest", "check_target", "new_hash")

MANIFEST_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)
"""What ``resolve`` asks for and returns."""

MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest; the distribution project takes no larger one either."""

_VAGUE_TYPES = ("", "application/json", "application/octet-stream", "text/plain", "binary/octet-stream")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGESTS = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


class Manifest(Struct, frozen=True):
    """A manifest or index as it lies in the registry; the digest is that of these bytes."""

    data: bytes
    media_type: str
    digest: str

    __repr__ = repr_without("data")


def check_digest(digest: str) -> str:
    """The digest, if it is one that can be checked: it may come from a stranger's manifest and goes into URLs.

    Raises: Invalid for anything but ``sha256:``, ``sha384:`` or ``sha512:`` and as many small hexadecimal digits.
    """
    algorithm, _, digits = digest.partition(":")
    length = _DIGESTS[algorithm]().digest_size * 2 if algorithm in _DIGESTS else 0
    if not length or not re.fullmatch(f"[0-9a-f]{{{length}}}", digits):
        raise errors.Invalid(
            f"cannot use {clean(digest)!r} as a digest: it must be sha256:, sha384: or sha512: and hex"
        )
    return digest


def check_target(target: str) -> str:
    """The tag or digest, if it is one. Raises: Invalid."""
    if ":" in target:
        return check_digest(target)
    if not _TAG.fullmatch(target):
        raise errors.Invalid(f"cannot use {clean(target)!r} as a tag")
    return target


def new_hash(digest: str) -> "hashlib._Hash":
    """A hash like the one of a digest ``algorithm:hex``. Raises: Invalid for one that is none."""
    return _DIGESTS[check_digest(digest).partition(":")[0]]()


def check_manifest(request: RegistryRequest, data: bytes, response: aiohttp.ClientResponse, target: str) -> Manifest:
    """The manifest, if its bytes are what was asked for and announced. Raises: Invalid, Unsupported."""
    announced = response.headers.get("Docker-Content-Digest", "")
    for expected in (target if ":" in target else "", announced):
        if expected.partition(":")[0] in _DIGESTS and (real := _digest_like(expected, data)) != expected:
            raise errors.Invalid(f"cannot {request.what}: what came has the digest {real}, not {clean(expected)}")
    digest = target if ":" in target else _digest_like("sha256:", data)
    return Manifest(data, _media_type(request, data, response.headers.get("Content-Type", "")), digest)


def _digest_like(example: str, data: bytes) -> str:
    algorithm = example.partition(":")[0]
    return f"{algorithm}:{_DIGESTS[algorithm](data).hexdigest()}"


def _media_type(request: RegistryRequest, data: bytes, content_type: str) -> str:
    """The media type that header and body agree on; a header that says nothing leaves it to the body."""
    header = content_type.partition(";")[0].strip().lower()
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"cannot {request.what}: it is not JSON") from error
    if not isinstance(document, dict):
        raise errors.Invalid(f"cannot {request.what}: it is not a JSON object")
    inside = document.get("mediaType")
    found = (inside if isinstance(inside, str) else "") if header in _VAGUE_TYPES else header
    if found not in MANIFEST_TYPES:
        raise errors.Unsupported(
            f"cannot {request.what}: a manifest of type {clean(found) or 'unknown'} is not understood"
        )
    if inside is not None and inside != found:
        raise errors.Invalid(f"cannot {request.what}: it says of itself that it is another thing than {found}")
    return found
