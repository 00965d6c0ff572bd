"""Indexes of manifests: the one parser, the one writer, and the one walk to the manifest for a platform.

Source: the OCI image specification 1.1 (index), Docker's manifest list, and buildkit's marks of attestations, which
are not packages.
"""

import json
from collections.abc import Awaitable, Callable, Iterable

from msgspec import Struct

from moorage import errors
from moorage._lib.escapes import single_line
from moorage.oci.descriptor import Descriptor, JsonDescriptor, descriptor_to_json
from moorage.oci.digest import check_digest, digest_of
from moorage.oci.limits import INDEX_DEPTH
from moorage.oci.manifest import RawManifest, decode
from moorage.oci.media_types import INDEXES, OCI_INDEX
from moorage.oci.platforms import Platform

__all__ = ("build_index", "is_index", "parse_index", "select_entry", "walk_to_manifest")

_ATTESTATION = "vnd.docker.reference.type"

ReadManifest = Callable[[str], Awaitable[RawManifest]]
"""Reads the manifest or index with a digest."""


class _Index(Struct):
    manifests: list[JsonDescriptor]


def is_index(raw: RawManifest) -> bool:
    """Whether it lists manifests for several platforms."""
    return raw.media_type in INDEXES


def parse_index(data: bytes, where: str) -> tuple[Descriptor, ...]:
    """The entries of an index, in its order; digests and sizes are not checked: an unknown one harms only itself.

    ``where`` begins the error.

    Raises:
        errors.Invalid: it is not an index.
    """
    return tuple(each.value() for each in decode(data, _Index, where).manifests)


def build_index(entries: Iterable[Descriptor]) -> RawManifest:
    """An OCI index of these entries. The same entries always give the same bytes."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor_to_json(each) for each in entries],
    }
    data = json.dumps(document).encode()
    return RawManifest(data, OCI_INDEX, digest_of(data))


def select_entry(index: RawManifest, what: str, host: Platform) -> str:
    """The digest of the entry for a platform; ``what`` is the reference, for errors.

    An entry without a platform is used where no other one fits.

    Raises:
        errors.NotFound: there is none, with the platforms that there are.
        errors.Invalid: it is not an index.
    """
    entries = parse_index(index.data, f"cannot use {what}: its manifest")
    packages = [each for each in entries if not _is_attestation(each)]
    known = [(each, each.platform) for each in packages if each.platform is not None]
    fitting = [(rank, each) for each, platform in known if (rank := host.rank(platform)) is not None]
    if fitting:
        return check_digest(min(fitting, key=lambda pair: pair[0])[1].digest)
    for each in packages:
        if each.platform is None:
            return check_digest(each.digest)
    available = ", ".join(dict.fromkeys(single_line(str(platform)) for _, platform in known)) or "none"
    raise errors.NotFound(f"cannot use {what}: there is no package for {host}, only for: {available}")


async def walk_to_manifest(root: RawManifest, read: ReadManifest, what: str, host: Platform) -> tuple[RawManifest, ...]:
    """The indexes from ``root`` on, and the manifest for a platform as the last; ``what`` is the reference, for errors.

    Raises:
        errors.NotFound: an index has nothing for the platform.
        errors.Invalid: an index cannot be read, or there are too many of them in each other.
    """
    found = [root]
    for _ in range(INDEX_DEPTH):
        if not is_index(found[-1]):
            return tuple(found)
        found.append(await read(select_entry(found[-1], what, host)))
    raise errors.Invalid(f"cannot use {what}: it is an index of indexes of indexes")


def _is_attestation(entry: Descriptor) -> bool:
    platform = entry.platform
    is_unknown = platform is not None and (platform.os, platform.architecture) == ("unknown", "unknown")
    return is_unknown or _ATTESTATION in entry.annotations
