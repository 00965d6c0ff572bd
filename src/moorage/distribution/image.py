"""A plugin's package from an ordinary container image and a config.json: the image's layers, Docker's manifest.

Source: Docker's image manifest schema 2 and the OCI image specification 1.1; layers are gzip in the package, because
that is what every engine for plugins takes (D04).
"""

import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.types import Descriptor
from moorage.distribution._check import Manifest
from moorage.distribution.manifest import HOST, MOST_LAYERS, Platform, PluginManifest, choose_entry, is_index
from moorage.distribution.package import (
    CONFIG_TYPE,
    LAYER_TYPE,
    UPLOAD_PREFIX,
    Package,
    write_document,
    write_manifest,
)
from moorage.distribution.pull import Found, Shared, Verify, take
from moorage.distribution.source import Report, Source, quiet
from moorage.distribution.stored import MANIFEST_LIMIT, Contents, bytes_of, hold, read_manifest
from moorage.plugins import Reference, as_it_came, parse_config, with_rootfs

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("find_image", "take_image")

_IMAGE_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
_GZIP = ("application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.oci.image.layer.v1.tar+gzip")
_PLAIN = ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar")
_DIFF_ID = "containerd.io/uncompressed"
_DEPTH = 3  # indexes in indexes


async def find_image(
    source: Source,
    reference: Reference,
    raw_config: bytes,
    host: Platform = HOST,
    *,
    verify: Verify | None = None,
) -> Found:
    """The image that a reference means on this machine, as a plugin with this config.json.

    ``verify`` is called as in ``pull.find``.

    Raises: what the source and ``verify`` do; NotFound where there is none for this platform; Invalid for a config that
    is wrong, or what is no image; Unsupported for layers that are neither gzip nor plain.
    """
    what = reference.familiar
    parsed = parse_config(raw_config)
    manifests = await _for_this_machine(source, reference, what, host)
    if verify is not None:
        await verify(source, reference, [each.digest for each in manifests])
    manifest = manifests[-1]
    contents = read_manifest(Descriptor(manifest.media_type, manifest.digest, len(manifest.data)), manifest.data)
    _check(contents, what)
    if contents.config.size_bytes > MANIFEST_LIMIT:
        raise errors.Invalid(f"cannot use {what}: the config of the image has over {MANIFEST_LIMIT} bytes")
    async with aclosing(source.read_blob(contents.config.digest, contents.config.size_bytes)) as pieces:
        raw = b"".join([piece async for piece in pieces])
    made = PluginManifest(contents.manifest, contents.data, contents.config, contents.layers)
    return Found(reference, manifest.digest, made, raw, parsed.config, parsed.warnings)


async def _for_this_machine(source: Source, reference: Reference, what: str, host: Platform) -> Sequence[Manifest]:
    """The indexes on the way, and the manifest at its end."""
    manifests = [await source.resolve(reference)]
    for _ in range(_DEPTH):
        if not is_index(manifests[-1]):
            return manifests
        manifests.append(await source.read_manifest(choose_entry(manifests[-1], what, host)))
    raise errors.Invalid(f"cannot use {what}: it is an index of indexes of indexes")


def _check(contents: Contents, what: str) -> None:
    kind = contents.config.media_type
    if kind == CONFIG_TYPE:
        raise errors.Invalid(f"cannot make a plugin of {what}: it is one already; install or load it")
    if kind not in _IMAGE_TYPES:
        raise errors.Invalid(f"cannot make a plugin of {what}: it is no image (its config is of type {kind!r})")
    if not contents.layers:
        raise errors.Invalid(f"cannot make a plugin of {what}: it has no layers")
    if len(contents.layers) > MOST_LAYERS:
        count = len(contents.layers)
        raise errors.Invalid(f"cannot make a plugin of {what}: it has {count} layers; 1 to {MOST_LAYERS} can be")
    for layer in contents.layers:
        if layer.media_type not in (*_GZIP, *_PLAIN):
            raise errors.Unsupported(
                f"cannot make a plugin of {what}: a layer of it is of type {layer.media_type!r}, and plugins have "
                "layers in gzip; convert it, as with: skopeo copy --dest-compress-format gzip"
            )


async def take_image(
    storage: "Storage",
    lease: str,
    snapshotter: str,
    source: Source,
    found: Found,
    *,
    scratch: str,
    shared: Shared,
    report: Report = quiet,
) -> Package:
    """Bring in the layers of an image, unpack them, and write a plugin's config and manifest on them; see ``take``.

    Raises: Invalid where the layers are not those that the image's config tells of; what ``take`` does.
    """
    made = await take(storage, lease, snapshotter, source, found, scratch=scratch, shared=shared, report=report)
    layers = found.manifest.layers
    diff_ids = [(await storage.get_content(layer.digest)).labels.get(_DIFF_ID, "") for layer in layers]
    if (promised := _promised(found.raw_config)) != diff_ids:
        raise errors.Invalid(
            f"cannot use {found.reference.familiar}: its layers unpack to {', '.join(diff_ids)}, "
            f"and its config promises {', '.join(promised) or 'none'}"
        )
    packed = {layer.digest: await _as_gzip(storage, layer) for layer in layers}
    config = with_rootfs(found.config, diff_ids)
    blob = await write_document(storage, CONFIG_TYPE, as_it_came(config))
    manifest = await write_manifest(storage, blob, [packed[layer.digest] for layer in layers])
    return replace(made, manifest=manifest, config=config)


def _promised(raw_config: bytes) -> Sequence[str]:
    """The diff ids in the config of an image."""
    try:
        document = msgspec.json.decode(raw_config)
        found = document["rootfs"]["diff_ids"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise errors.Invalid(f"cannot read the config of the image: it has no rootfs.diff_ids: {error}") from error
    return [str(each) for each in found] if isinstance(found, list) else []


async def _as_gzip(storage: "Storage", layer: Descriptor) -> Descriptor:
    """The layer as a package has it: its blob as it is where that is gzip, else another one of the same files."""
    if layer.media_type in _GZIP:
        return Descriptor(LAYER_TYPE, layer.digest, layer.size_bytes)
    size = 0

    async def chunks(offset: int) -> AsyncIterator[bytes]:
        nonlocal size
        assert offset == 0, "nothing of it is known before"
        compress = zlib.compressobj(1, wbits=31)  # no time and no name: the same bytes always give the same
        async with aclosing(bytes_of(storage, layer)()) as pieces:
            async for piece in pieces:
                made = await run_blocking(lambda piece=piece: compress.compress(piece))  # type: ignore[misc]
                size += len(made)
                yield made
        made = compress.flush()
        size += len(made)
        yield made

    digest = await storage.write_content(f"{UPLOAD_PREFIX}gzip-{layer.digest}", chunks)
    await hold(storage, digest)  # one that turned out to be there only at the end was not added to our lease
    return Descriptor(LAYER_TYPE, digest, size)
