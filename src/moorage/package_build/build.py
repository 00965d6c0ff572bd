"""Builds the package of a plugin: config and layers for each platform, one manifest each, one index for several.

The same inputs give the same bytes. What comes out is an OCI layout, in a directory or as the archive that
``moorage load`` reads, and what ``publish`` pushes.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.oci.descriptor import Descriptor
from moorage.oci.index import build_index
from moorage.oci.manifest import encode_manifest
from moorage.oci.media_types import DOCKER_MANIFEST, OCI_INDEX, PLUGIN_CONFIG
from moorage.oci.platforms import Platform
from moorage.package_build.base import BaseLayers, base_of_directory, base_of_image
from moorage.package_build.blob_store import BlobStore
from moorage.package_build.layers import LayerOptions, write_layer
from moorage.package_build.layout_source import LayoutSource, is_layout
from moorage.packages.archive_export import LAYOUT, NAME_ANNOTATION, TAG_ANNOTATION
from moorage.packages.directory import PluginDirectory
from moorage.packages.source import Source
from moorage.plugins import Reference, as_it_came, parse_reference, with_rootfs
from moorage.registry.credentials import CredentialsFor
from moorage.registry.hosts import Options
from moorage.registry.registry import Registry

__all__ = ("BuildOptions", "BuiltPackage", "RegistryAccess", "build_package")

_NEVER = 1 << 40  # seconds: after every file
_KIT_PATH = "plugin/moorage/kit"


class RegistryAccess(Struct, frozen=True):
    """How registries are reached."""

    options: Options
    credentials_for: CredentialsFor | None = None

    @asynccontextmanager
    async def open(self, reference: Reference, action: Literal["pull", "push"]) -> AsyncIterator[Registry]:
        """The repository of a reference."""
        async with Registry(reference, action, credentials=self.credentials_for, options=self.options) as registry:
            yield registry


class BuildOptions(Struct, frozen=True):
    """What is built."""

    name: str
    """Of the plugin, with a tag, for the archive."""
    platforms: tuple[Platform, ...]
    bases: dict[Platform | None, str]
    """Directory, OCI layout or image reference for a platform; None for all others. Empty for no base."""
    epoch: int = 0
    """Seconds since 1970: the time of the author's files."""
    with_kit: bool = False
    """Whether the kit of this Moorage is added, instead of one in the directory."""


class BuiltPackage(Struct, frozen=True):
    """A package in a store."""

    root: Descriptor
    """Its manifest, or the index of those for several platforms."""
    manifests: tuple[Descriptor, ...]
    """One for each platform."""
    blobs: tuple[Descriptor, ...]
    """All configs and layers, each once."""


async def build_package(
    plugin: PluginDirectory, options: BuildOptions, store: BlobStore, access: RegistryAccess
) -> BuiltPackage:
    """Build a package in the store, and write the index of its layout.

    Raises:
        errors.Invalid: a file cannot be read, or a base is not one
        errors.MoorageError: what reading a base raises
    """
    own = await run_blocking(lambda: _own_layer(plugin, options, store))
    bases: dict[tuple[str, Platform | None], BaseLayers] = {}
    manifests, blobs = [], {}
    for host in options.platforms:
        text = options.bases.get(host, options.bases.get(None, ""))
        key = text, None if _is_root(text) else host
        if text and key not in bases:
            bases[key] = await _base(text, host, options, store, access)
        base = bases.get(key, BaseLayers())
        config = with_rootfs(plugin.parsed.config, (*base.diff_ids, own[1]))
        config_blob = store.add(PLUGIN_CONFIG, as_it_came(config))
        layers = (*base.layers, own[0])
        data = encode_manifest(config_blob, layers)
        manifests.append(replace(store.add(DOCKER_MANIFEST, data), platform=host))
        blobs.update({each.digest: each for each in (config_blob, *layers)})
    root = _root(manifests, store)
    _write_index(store, root, options.name)
    return BuiltPackage(root, tuple(manifests), tuple(blobs.values()))


def _own_layer(plugin: PluginDirectory, options: BuildOptions, store: BlobStore) -> tuple[Descriptor, str]:
    sources = {"": plugin.rootfs}
    layer_options = LayerOptions(options.epoch)
    if not options.with_kit:
        return write_layer(store, sources, layer_options)
    with resources.as_file(resources.files("moorage") / "kit") as kit:
        return write_layer(store, {**sources, _KIT_PATH: kit}, layer_options)


def _is_root(text: str) -> bool:
    path = Path(text)
    return bool(text) and path.is_dir() and not is_layout(path)


async def _base(
    text: str, host: Platform, options: BuildOptions, store: BlobStore, access: RegistryAccess
) -> BaseLayers:
    path = Path(text)
    if _is_root(text):
        return await base_of_directory(store, path, options.epoch or _NEVER)
    if is_layout(path):
        # a reference only names the layout in errors
        return await base_of_image(store, LayoutSource(path), parse_reference("layout"), host)
    if text.startswith((".", "/")):
        raise errors.NotFound(f"cannot use {text} as a base: there is no such directory")
    reference = parse_reference(text)
    async with access.open(reference, "pull") as registry:
        source: Source = registry
        return await base_of_image(store, source, reference, host)


def _root(manifests: Sequence[Descriptor], store: BlobStore) -> Descriptor:
    if len(manifests) == 1:
        return manifests[0]
    return store.add(OCI_INDEX, build_index(manifests).data)


def _write_index(store: BlobStore, root: Descriptor, name: str) -> None:
    reference = parse_reference(name).with_default_tag()
    notes = {NAME_ANNOTATION: str(reference), TAG_ANNOTATION: reference.tag or ""}
    (store.layout / "oci-layout").write_text(json.dumps(LAYOUT))
    (store.layout / "index.json").write_bytes(build_index([replace(root, annotations=notes)]).data)
