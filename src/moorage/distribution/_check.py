"""Whether what a registry sent is what was asked for: digests, and media types of manifests."""

import hashlib
from dataclasses import dataclass, field

import aiohttp
import msgspec

from moorage import errors
from moorage.distribution._conversation import Ask
from moorage.distribution._http import clean

__all__ = ("MANIFEST_LIMIT", "MANIFEST_TYPES", "Manifest", "check_manifest", "new_hash")

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
_DIGESTS = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or index as it lies in the registry; the digest is that of these bytes."""

    data: bytes = field(repr=False)
    media_type: str
    digest: str


def new_hash(digest: str) -> "hashlib._Hash":
    """A hash like the one of a digest ``algorithm:hex``. Raises: Invalid for one that is unknown."""
    try:
        return _DIGESTS[digest.partition(":")[0]]()
    except KeyError:
        raise errors.Invalid(f"cannot check {clean(digest)}: digests are sha256, sha384 or sha512") from None


def check_manifest(ask: Ask, data: bytes, response: aiohttp.ClientResponse, target: str) -> Manifest:
    """The manifest, if its bytes are what was asked for and announced. Raises: Invalid, Unsupported."""
    announced = response.headers.get("Docker-Content-Digest", "")
    for expected in (target if ":" in target else "", announced):
        if expected.partition(":")[0] in _DIGESTS and (real := _digest_like(expected, data)) != expected:
            raise errors.Invalid(f"cannot {ask.what}: what came has the digest {real}, not {clean(expected)}")
    digest = target if ":" in target else _digest_like("sha256:", data)
    return Manifest(data, _media_type(ask, data, response.headers.get("Content-Type", "")), digest)


def _digest_like(example: str, data: bytes) -> str:
    hasher = new_hash(example)
    hasher.update(data)
    return f"{hasher.name}:{hasher.hexdigest()}"


def _media_type(ask: Ask, data: bytes, content_type: str) -> str:
    """The media type that header and body agree on; a header that says nothing leaves it to the body."""
    header = content_type.partition(";")[0].strip().lower()
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"cannot {ask.what}: it is not JSON") from error
    if not isinstance(document, dict):
        raise errors.Invalid(f"cannot {ask.what}: it is not a JSON object")
    inside = document.get("mediaType")
    found = (inside if isinstance(inside, str) else "") if header in _VAGUE_TYPES else header
    if found not in MANIFEST_TYPES:
        raise errors.Unsupported(f"cannot {ask.what}: a manifest of type {clean(found) or 'unknown'} is not understood")
    if inside is not None and inside != found:
        raise errors.Invalid(f"cannot {ask.what}: it says of itself that it is another thing than {found}")
    return found
