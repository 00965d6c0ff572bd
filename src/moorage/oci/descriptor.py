"""Descriptors of content: the values by which manifests, indexes and stores refer to blobs.

Source: image-spec descriptor.md.
"""

from collections.abc import Mapping

from msgspec import Struct, field

from moorage import errors
from moorage._lib.escapes import single_line
from moorage.oci.digest import check_digest
from moorage.oci.limits import SIZE_BYTES
from moorage.oci.platforms import Platform, normalized

__all__ = ("Descriptor", "JsonDescriptor", "check_descriptor", "descriptor_to_json")


class Descriptor(Struct, frozen=True):
    """Refers to content: what it is (a media type), which bytes (``sha256:...``), how many."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    """In lists of referrers: what kind of artifact the manifest is."""
    platform: Platform | None = None
    """In indexes: what the manifest is for, normalized; None where the index does not say."""


class JsonDescriptor(Struct):
    """A descriptor as it is in JSON; other fields are ignored."""

    digest: str
    size: int
    mediaType: str = ""  # noqa: N815 - JSON's name
    artifactType: str = ""  # noqa: N815 - JSON's name
    annotations: Mapping[str, object] | None = None
    platform: Mapping[str, object] | None = None

    def value(self) -> Descriptor:
        """The descriptor, its digest and size not checked yet."""
        notes = {key: each for key, each in (self.annotations or {}).items() if isinstance(each, str)}
        platform = None
        if self.platform:
            parts = [str(self.platform.get(key) or "") for key in ("os", "architecture", "variant")]
            platform = normalized(*parts)
        return Descriptor(self.mediaType, self.digest, self.size, notes, self.artifactType, platform)


def check_descriptor(descriptor: Descriptor, where: str) -> Descriptor:
    """The descriptor, if its digest and size are possible; ``where`` begins the error.

    Raises:
        errors.Invalid: its digest cannot be verified, or its size is negative or too large.
    """
    if not 0 <= descriptor.size_bytes <= SIZE_BYTES:
        raise errors.Invalid(f"{where}: {single_line(descriptor.digest)} cannot have {descriptor.size_bytes} bytes")
    check_digest(descriptor.digest)
    return descriptor


def descriptor_to_json(descriptor: Descriptor) -> dict[str, object]:
    """The descriptor as a JSON object; fields that say nothing are left out."""
    made: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size_bytes,
    }
    if descriptor.annotations:
        made["annotations"] = dict(descriptor.annotations)
    if descriptor.artifact_type:
        made["artifactType"] = descriptor.artifact_type
    if (platform := descriptor.platform) is not None:
        variant = {"variant": platform.variant} if platform.variant else {}
        made["platform"] = {"os": platform.os, "architecture": platform.architecture, **variant}
    return made
