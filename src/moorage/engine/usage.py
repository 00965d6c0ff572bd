"""What plugins take of the disk, and what was given back: frozen values, of which the API makes JSON."""

from msgspec import Struct

__all__ = ("DiskUsage", "PluginUsage", "Pruned")


class PluginUsage(Struct, frozen=True):
    """What one plugin takes of the disk; ``shared`` is the part of it that other plugins have, too."""

    id: str
    name: str
    package_bytes: int
    """Manifest, config and layers as they came."""
    shared_package_bytes: int
    layers_bytes: int
    """The layers unpacked."""
    shared_layers_bytes: int
    written_bytes: int
    """What it changed in its root file system."""
    data_bytes: int
    """Below its propagated mount, without what is mounted there."""
    logs_bytes: int


class DiskUsage(Struct, frozen=True):
    """What everything takes of the disk, each blob and each layer once."""

    plugins: tuple[PluginUsage, ...]
    content_bytes: int
    layers_bytes: int
    written_bytes: int
    uploads: int
    """Blobs that were begun and not ended, by somebody who is at it or who is gone."""
    uploads_bytes: int
    unreferenced_bytes: int
    """Content and layers that no plugin refers to: of one that is being made, or left."""


class Pruned(Struct, frozen=True):
    """What a prune has removed."""

    freed_bytes: int
    uploads: int
    under_way: int
    """As many plugins are being made or fetched; where it is not 0 uploads were left alone."""
