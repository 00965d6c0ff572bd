"""What a plugin's files are put on: the layers of an image, or those of a root file system in a directory."""

import hashlib
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.oci.descriptor import Descriptor
from moorage.oci.index import walk_to_manifest
from moorage.oci.limits import MANIFEST_BYTES
from moorage.oci.manifest import check_layers, decode, parse_diff_ids, parse_manifest
from moorage.oci.media_types import DOCKER_LAYER_GZIP, GZIP_LAYERS, IMAGE_CONFIGS, PLAIN_LAYERS
from moorage.oci.platforms import Platform, normalized
from moorage.package_build.blob_store import BlobStore, LayerWriter
from moorage.package_build.layers import LayerOptions, write_layer
from moorage.packages.source import Source
from moorage.plugins import Reference

__all__ = ("BaseLayers", "base_of_directory", "base_of_image")


class BaseLayers(Struct, frozen=True):
    """The layers below a plugin's files, in the store."""

    layers: tuple[Descriptor, ...] = ()
    diff_ids: tuple[str, ...] = ()


async def base_of_directory(store: BlobStore, root: Path, epoch: int) -> BaseLayers:
    """A root file system, as debootstrap makes it, as one layer. Raises: errors.Invalid naming a file."""
    layer, diff_id = await run_blocking(lambda: write_layer(store, {"": root}, LayerOptions(epoch, is_base=True)))
    return BaseLayers((layer,), (diff_id,))


async def base_of_image(store: BlobStore, source: Source, reference: Reference, host: Platform) -> BaseLayers:
    """The layers of an image for a platform, read into the store.

    Raises:
        errors.NotFound: there is none for the platform
        errors.Invalid: it is not an image, or damaged
        errors.Unsupported: a layer is neither gzip nor plain
        errors.MoorageError: what the source raises
    """
    what = reference.familiar
    manifests = await walk_to_manifest(await source.resolve(reference), source.read_manifest, what, host)
    manifest = parse_manifest(manifests[-1], f"cannot use {what}: its manifest")
    if manifest.config.media_type not in IMAGE_CONFIGS or manifest.config.size_bytes > MANIFEST_BYTES:
        raise errors.Invalid(f"cannot use {what} as a base: it is not an image but {manifest.config.media_type!r}")
    check_layers(manifest, f"cannot use {what} as a base")
    async with aclosing(source.read_blob(manifest.config.digest, manifest.config.size_bytes)) as pieces:
        config = b"".join([piece async for piece in pieces])
    if f"sha256:{hashlib.sha256(config).hexdigest()}" != manifest.config.digest:
        raise errors.Invalid(f"cannot use {what} as a base: its config has another digest")
    _check_platform(config, host, what)
    stated = parse_diff_ids(config, f"the config of {what}")
    layers, diff_ids = [], []
    for layer in manifest.layers:
        made, diff_id = await _copy_layer(store, source, layer, what)
        layers.append(made)
        diff_ids.append(diff_id)
    if tuple(diff_ids) != stated:
        raise errors.Invalid(f"cannot use {what} as a base: its layers are not those that its config names")
    return BaseLayers(tuple(layers), tuple(diff_ids))


class _ImagePlatform(Struct):
    os: str = "linux"
    architecture: str = ""
    variant: str = ""


def _check_platform(config: bytes, host: Platform, what: str) -> None:
    """Raises: errors.NotFound for an image without an index that is for another platform."""
    stated = decode(config, _ImagePlatform, f"the config of {what}")
    platform = normalized(stated.os, stated.architecture, stated.variant)
    if stated.architecture and host.rank(platform) is None:
        raise errors.NotFound(f"cannot use {what} as a base: there is no package for {host}, only for: {platform}")


async def _copy_layer(store: BlobStore, source: Source, layer: Descriptor, what: str) -> tuple[Descriptor, str]:
    """Read a layer; its descriptor in a package, where it is gzip, and its diff id. Raises: errors.MoorageError."""
    if layer.media_type in PLAIN_LAYERS:
        with LayerWriter(store) as writer:
            await _read_verified(source, layer, what, writer.write)
            return await run_blocking(lambda: writer.finish(DOCKER_LAYER_GZIP))
    if layer.media_type not in GZIP_LAYERS:
        raise errors.Unsupported(
            f"cannot use {what} as a base: a layer of it is of type {layer.media_type!r}; convert it, as with: "
            "skopeo copy --dest-compress-format gzip"
        )
    path = store.temporary()
    plain, inflate = hashlib.sha256(), zlib.decompressobj(wbits=31)

    def put(piece: bytes) -> None:
        file.write(piece)
        plain.update(inflate.decompress(piece))

    try:
        with path.open("xb") as file:
            await _read_verified(source, layer, what, put)
        await run_blocking(lambda: path.replace(store.path(layer.digest)))
    except zlib.error as error:
        raise errors.Invalid(f"cannot use {what} as a base: {layer.digest} is not gzip: {error}") from error
    finally:
        path.unlink(missing_ok=True)
    return Descriptor(DOCKER_LAYER_GZIP, layer.digest, layer.size_bytes), f"sha256:{plain.hexdigest()}"


async def _read_verified(source: Source, blob: Descriptor, what: str, put: Callable[[bytes], object]) -> None:
    """Pass the bytes of a blob on. Raises: errors.Invalid after them if they have another digest."""
    found = hashlib.sha256()

    def take(piece: bytes) -> None:
        found.update(piece)
        put(piece)

    pieces: AsyncGenerator[bytes, None] = source.read_blob(blob.digest, blob.size_bytes)
    async with aclosing(pieces):
        async for piece in pieces:
            await run_blocking(lambda piece=piece: take(piece))  # type: ignore[misc]
    if f"sha256:{found.hexdigest()}" != blob.digest:
        raise errors.Invalid(f"cannot use {what} as a base: {blob.digest} has another content")
