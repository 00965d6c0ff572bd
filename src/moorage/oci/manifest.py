"""Manifests of plugins and images: the one parser and the one writer.

Source: Docker's image manifest schema 2 and the OCI image specification 1.1.
"""

import json
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from moorage import errors
from moorage._lib.escapes import single_line
from moorage._lib.values import repr_without
from moorage.oci.descriptor import Descriptor, JsonDescriptor, check_descriptor, descriptor_to_json
from moorage.oci.limits import CONFIG_BYTES, LAYER_COUNT
from moorage.oci.media_types import DOCKER_MANIFEST, LAYERS, OCI_INDEX, OCI_MANIFEST, PLUGIN_CONFIG

__all__ = (
    "Manifest",
    "RawManifest",
    "check_layers",
    "check_plugin",
    "decode",
    "encode_manifest",
    "media_type_of",
    "parse_diff_ids",
    "parse_layers",
    "parse_manifest",
    "stated_media_type",
)

Shape = TypeVar("Shape")


class RawManifest(Struct, frozen=True):
    """A manifest or index as it is stored in a registry; the digest is that of these bytes."""

    data: bytes
    media_type: str
    digest: str

    __repr__ = repr_without("data")

    @property
    def descriptor(self) -> Descriptor:
        """Refers to it."""
        return Descriptor(self.media_type, self.digest, len(self.data))


class Manifest(Struct, frozen=True):
    """The manifest of one plugin or image."""

    descriptor: Descriptor
    data: bytes
    """Its bytes, as they are stored."""
    config: Descriptor
    layers: tuple[Descriptor, ...]

    __repr__ = repr_without("data")

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers, each digest once: what a registry must have before the manifest."""
        return tuple({each.digest: each for each in (self.config, *self.layers)}.values())


class _Manifest(Struct):
    config: JsonDescriptor
    layers: list[JsonDescriptor]


class _Artifact(Struct):
    layers: list[JsonDescriptor]


class _RootFs(Struct):
    diff_ids: list[str]


class _ImageConfig(Struct):
    rootfs: _RootFs


def parse_manifest(raw: RawManifest, where: str) -> Manifest:
    """Config and layers of a manifest, their digests and sizes checked; ``where`` begins errors.

    Raises:
        errors.Invalid: it is not a manifest, or has a digest or a size that is impossible.
    """
    document = decode(raw.data, _Manifest, where)
    config = check_descriptor(document.config.value(), where)
    layers = tuple(check_descriptor(each.value(), where) for each in document.layers)
    return Manifest(raw.descriptor, raw.data, config, layers)


def parse_layers(data: bytes, where: str) -> tuple[Descriptor, ...]:
    """The layers of an artifact's manifest, not checked: layers of other kinds may be among them.

    Raises:
        errors.Invalid: it is not a manifest.
    """
    return tuple(each.value() for each in decode(data, _Artifact, where).layers)


def parse_diff_ids(data: bytes, where: str) -> tuple[str, ...]:
    """The diff ids of all layers that the config of an image names.

    Raises:
        errors.Invalid: it has none.
    """
    return tuple(decode(data, _ImageConfig, where).rootfs.diff_ids)


def check_plugin(manifest: Manifest, what: str) -> Manifest:
    """The manifest, if it is a plugin's; ``what`` is the reference, for errors.

    Raises:
        errors.Invalid: it is an image's or something else's, its config is too large, or its layers cannot be unpacked.
    """
    kind = manifest.config.media_type
    if kind != PLUGIN_CONFIG:
        raise errors.Invalid(_not_a_plugin(what, single_line(kind) or "unknown"))
    for layer in manifest.layers:
        if layer.media_type not in LAYERS:
            raise errors.Invalid(
                f"cannot use {what}: a layer of type {single_line(layer.media_type) or 'unknown'} cannot be unpacked"
            )
    check_layers(manifest, f"cannot use {what}")
    if manifest.config.size_bytes > CONFIG_BYTES:
        raise errors.Invalid(f"cannot use {what}: its config has more than {CONFIG_BYTES} bytes")
    return manifest


def _not_a_plugin(what: str, kind: str) -> str:
    types = f"its config is of type {kind}, a plugin's of type {PLUGIN_CONFIG}"
    if ".image." not in kind:
        return f"cannot use {what}: it is not a plugin ({types})"
    # by dockerd's words at the end its command recognizes an image, and names `docker image pull`
    dockers = f'Encountered remote "{kind}"(image) when fetching'
    return f"cannot use {what}: it is not a plugin but an image ({types}): {dockers}"


def check_layers(manifest: Manifest, where: str) -> None:
    """Check the number of layers; ``where`` begins the error.

    Raises:
        errors.Invalid: it has none or too many.
    """
    if not 0 < len(manifest.layers) <= LAYER_COUNT:
        raise errors.Invalid(f"{where}: it has {len(manifest.layers)} layers; 1 to {LAYER_COUNT} are possible")


def encode_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """The bytes of a manifest of Docker's schema 2, which every engine takes for plugins."""
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor_to_json(config),
        "layers": [descriptor_to_json(layer) for layer in layers],
    }
    return json.dumps(document).encode()


def media_type_of(data: bytes) -> str:
    """The media type that a manifest states of itself; by its fields where it states none, as OCI allows.

    Empty where it is not a JSON object.
    """
    try:
        document = _json_object(data, "")
    except errors.Invalid:
        return ""
    stated = document.get("mediaType")
    if isinstance(stated, str):
        return stated
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST


def stated_media_type(data: bytes, where: str) -> object:
    """What a manifest or index states as its media type, which may be anything; None where it states none.

    ``where`` begins the error.

    Raises:
        errors.Invalid: it is not a JSON object.
    """
    return _json_object(data, where).get("mediaType")


def _json_object(data: bytes, where: str) -> dict[str, object]:
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"{where}: it is not JSON") from error
    if not isinstance(document, dict):
        raise errors.Invalid(f"{where}: it is not a JSON object")
    return document


def decode(data: bytes, shape: type[Shape], where: str) -> Shape:
    """JSON of this shape; fields that it does not name are ignored. ``where`` begins the error.

    Raises:
        errors.Invalid: it is not JSON, or of another shape.
    """
    try:
        return msgspec.json.decode(data, type=shape)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"{where} cannot be read: {error}") from error
