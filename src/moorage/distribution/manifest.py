"""Manifests of plugins and indexes of them, read: which entry is for this machine, which config, which layers. Pure.

Source: Docker's image manifest schema 2 and manifest list, the OCI image specification 1.1 (manifest, index), and
buildkit's marks of attestations, which are no packages.
"""

import platform as machine
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from moorage import errors
from moorage._lib.values import repr_without
from moorage.containerd.types import Descriptor
from moorage.distribution._check import Manifest, check_digest
from moorage.distribution._status import clean
from moorage.distribution.package import CONFIG_LIMIT, CONFIG_TYPE

__all__ = (
    "HOST",
    "LAYER_TYPES",
    "MOST_LAYERS",
    "Platform",
    "PluginManifest",
    "choose_entry",
    "is_index",
    "read_plugin_manifest",
)

LAYER_TYPES = frozenset(
    {
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    }
)
"""What can be unpacked."""

_INDEX_TYPES = ("application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json")
MOST_LAYERS = 127
"""Of one package, as Docker; overlay takes some hundred."""
_ATTESTATION = "vnd.docker.reference.type"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "i386": "386", "armv7l": "arm", "armv6l": "arm"}
_VARIANTS = {"armv7l": "v7", "armv6l": "v6"}


class Platform(Struct, frozen=True):
    """What a package is made for, in Go's names."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(each for each in (self.os, self.architecture, self.variant) if each)

    def rank(self, other: "Platform") -> int | None:
        """How well a package for another platform runs here: the least number is the best, None is not at all."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return None
        if other.variant == self.variant:
            return 0
        if not other.variant or not self.variant:
            return 1
        is_older = other.variant < self.variant and self.architecture == "arm"  # v6 runs on v7
        return 2 + ord(self.variant[-1]) - ord(other.variant[-1]) if is_older else None


HOST = Platform("linux", _MACHINES.get(machine.machine(), machine.machine()), _VARIANTS.get(machine.machine(), ""))
"""This machine."""


class PluginManifest(Struct, frozen=True):
    """The manifest of one plugin."""

    descriptor: Descriptor
    data: bytes
    """Its bytes, as they lie in the registry."""
    config: Descriptor
    layers: tuple[Descriptor, ...]

    __repr__ = repr_without("data")


Shape = TypeVar("Shape")


class _Entry(msgspec.Struct):
    """A descriptor as JSON has it; what is not named here is of no interest."""

    digest: str
    size: int
    mediaType: str = ""  # noqa: N815 - JSON's name
    annotations: Mapping[str, str] | None = None
    platform: Mapping[str, object] | None = None


class _Index(msgspec.Struct):
    manifests: list[_Entry]


class _Image(msgspec.Struct):
    config: _Entry
    layers: list[_Entry]


def is_index(manifest: Manifest) -> bool:
    """Whether it lists manifests for several platforms."""
    return manifest.media_type in _INDEX_TYPES


def choose_entry(index: Manifest, what: str, host: Platform = HOST) -> str:
    """The digest of the entry for this machine; ``what`` is the reference, for messages.

    An entry that does not say for what it is, is taken where no other one fits. Raises: NotFound with all platforms
    that there are; Invalid for an index that cannot be read.
    """
    packages = [each for each in _read(index, _Index, what).manifests if not _is_attestation(each)]
    known = [(each, made) for each in packages if (made := _platform(each)) is not None]
    fitting = [(rank, each) for each, made in known if (rank := host.rank(made)) is not None]
    if fitting:
        return check_digest(min(fitting, key=lambda pair: pair[0])[1].digest)
    for each in packages:
        if _platform(each) is None:
            return check_digest(each.digest)
    there = ", ".join(dict.fromkeys(clean(str(made)) for _, made in known)) or "none"
    raise errors.NotFound(f"cannot use {what}: there is no package for {host}, only for: {there}")


def read_plugin_manifest(manifest: Manifest, what: str) -> PluginManifest:
    """Config and layers of a plugin; ``what`` is the reference, for messages.

    Raises: Invalid for an image or another thing that is no plugin, a type of layers that cannot be unpacked (both by
    name), too large a config, too many layers, or what is no manifest.
    """
    document = _read(manifest, _Image, what)
    config_type = document.config.mediaType
    if config_type != CONFIG_TYPE:
        kind = " but an image" if ".image." in config_type else ""
        raise errors.Invalid(
            f"cannot use {what}: it is not a plugin{kind} (its config is of type {clean(config_type) or 'unknown'}, "
            f"a plugin's of type {CONFIG_TYPE})"
        )
    for layer in document.layers:
        if layer.mediaType not in LAYER_TYPES:
            raise errors.Invalid(
                f"cannot use {what}: a layer of type {clean(layer.mediaType) or 'unknown'} cannot be unpacked"
            )
    if not 0 < len(document.layers) <= MOST_LAYERS:
        raise errors.Invalid(f"cannot use {what}: it has {len(document.layers)} layers; 1 to {MOST_LAYERS} can be")
    config = _descriptor(document.config, what)
    if config.size_bytes > CONFIG_LIMIT:
        raise errors.Invalid(f"cannot use {what}: its config has more than {CONFIG_LIMIT} bytes")
    return PluginManifest(
        Descriptor(manifest.media_type, manifest.digest, len(manifest.data)),
        manifest.data,
        config,
        tuple(_descriptor(layer, what) for layer in document.layers),
    )


def _read(manifest: Manifest, shape: type[Shape], what: str) -> Shape:
    try:
        return msgspec.json.decode(manifest.data, type=shape)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"cannot use {what}: its manifest cannot be read: {error}") from error


def _descriptor(entry: _Entry, what: str) -> Descriptor:
    if not 0 <= entry.size < 1 << 62:
        raise errors.Invalid(f"cannot use {what}: {clean(entry.digest)} cannot have {entry.size} bytes")
    return Descriptor(entry.mediaType, check_digest(entry.digest), entry.size)


def _is_attestation(entry: _Entry) -> bool:
    made = _platform(entry)
    is_unknown = made is not None and (made.os, made.architecture) == ("unknown", "unknown")
    return is_unknown or _ATTESTATION in (entry.annotations or {})


def _platform(entry: _Entry) -> Platform | None:
    if not entry.platform:
        return None
    parts: Sequence[str] = [str(entry.platform.get(key) or "") for key in ("os", "architecture", "variant")]
    variant = "" if (parts[1], parts[2]) == ("arm64", "v8") else parts[2]  # v8 is what arm64 is
    return Platform(parts[0], parts[1], variant)
