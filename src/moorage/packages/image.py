"""A plugin's package made of an ordinary container image and a config.json.

Source: Docker's image manifest schema 2 and the OCI image specification 1.1; layers are gzip in the package, because
that is what every engine for plugins accepts (D04).
"""

import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec.structs import replace

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.images.layers import DIFF_ID_LABEL
from moorage.oci.descriptor import Descriptor
from moorage.oci.index import walk_to_manifest
from moorage.oci.limits import MANIFEST_BYTES
from moorage.oci.manifest import Manifest, check_layers, parse_diff_ids, parse_manifest
from moorage.oci.media_types import DOCKER_LAYER_GZIP, GZIP_LAYERS, IMAGE_CONFIGS, PLAIN_LAYERS, PLUGIN_CONFIG
from moorage.oci.platforms import Platform
from moorage.packages.content import (
    UPLOAD_PREFIX,
    ImportContext,
    Package,
    add_to_lease,
    blob_reader,
    write_blob,
    write_manifest,
)
from moorage.packages.pull import LOCAL_PLATFORM, PullLocks, ResolvedPackage, VerifySignatures, pull_package
from moorage.packages.source import ReportProgress, Source, ignore_progress
from moorage.plugins import Reference, as_it_came, parse_config, with_rootfs

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("import_image", "resolve_image")


async def resolve_image(
    source: Source,
    reference: Reference,
    raw_config: bytes,
    host: Platform = LOCAL_PLATFORM,
    *,
    verify: VerifySignatures | None = None,
) -> ResolvedPackage:
    """The image that a reference refers to on this host, as a plugin with this config.json.

    ``verify`` is called as in ``resolve_package``.

    Raises:
        errors.NotFound: the source does not have it, or not for this platform
        errors.Invalid: the config is invalid, or it is not an image
        errors.Unsupported: a layer is neither gzip nor plain
        errors.MoorageError: what the source and ``verify`` raise
    """
    what = reference.familiar
    parsed = parse_config(raw_config)
    manifests = await walk_to_manifest(await source.resolve(reference), source.read_manifest, what, host)
    if verify is not None:
        await verify(source, reference, [each.digest for each in manifests])
    manifest = parse_manifest(manifests[-1], f"cannot make a plugin of {what}: its manifest")
    _check(manifest, what)
    if manifest.config.size_bytes > MANIFEST_BYTES:
        raise errors.Invalid(f"cannot use {what}: the config of the image has over {MANIFEST_BYTES} bytes")
    async with aclosing(source.read_blob(manifest.config.digest, manifest.config.size_bytes)) as pieces:
        raw = b"".join([piece async for piece in pieces])
    return ResolvedPackage(reference, manifests[-1].digest, manifest, raw, parsed.config, parsed.warnings)


def _check(manifest: Manifest, what: str) -> None:
    kind = manifest.config.media_type
    if kind == PLUGIN_CONFIG:
        raise errors.Invalid(f"cannot make a plugin of {what}: it is one already; install or load it")
    if kind not in IMAGE_CONFIGS:
        raise errors.Invalid(f"cannot make a plugin of {what}: it is no image (its config is of type {kind!r})")
    if not manifest.layers:
        raise errors.Invalid(f"cannot make a plugin of {what}: it has no layers")
    check_layers(manifest, f"cannot make a plugin of {what}")
    for layer in manifest.layers:
        if layer.media_type not in (*GZIP_LAYERS, *PLAIN_LAYERS):
            raise errors.Unsupported(
                f"cannot make a plugin of {what}: a layer of it is of type {layer.media_type!r}, and plugins have "
                "layers in gzip; convert it, as with: skopeo copy --dest-compress-format gzip"
            )


async def import_image(
    context: ImportContext,
    source: Source,
    resolved: ResolvedPackage,
    locks: PullLocks,
    report: ReportProgress = ignore_progress,
) -> Package:
    """Import and unpack the layers of an image, and write a plugin's config and manifest for them.

    Raises:
        errors.Invalid: the layers are not those that the image's config states
        errors.MoorageError: what ``pull_package`` raises
    """
    storage = context.storage
    made = await pull_package(context, source, resolved, locks, report)
    layers = resolved.manifest.layers
    diff_ids = [(await storage.get_content(layer.digest)).labels.get(DIFF_ID_LABEL, "") for layer in layers]
    if (stated := list(parse_diff_ids(resolved.raw_config, "the config of the image"))) != diff_ids:
        raise errors.Invalid(
            f"cannot use {resolved.reference.familiar}: its layers unpack to {', '.join(diff_ids)}, "
            f"and its config promises {', '.join(stated) or 'none'}"
        )
    packed = {layer.digest: await _as_gzip(storage, layer) for layer in layers}
    config = with_rootfs(resolved.config, diff_ids)
    blob = await write_blob(storage, PLUGIN_CONFIG, as_it_came(config))
    manifest = await write_manifest(storage, blob, [packed[layer.digest] for layer in layers])
    return replace(made, manifest=manifest, config=config)


async def _as_gzip(storage: "Storage", layer: Descriptor) -> Descriptor:
    """The layer as a package has it: its blob unchanged if that is gzip, else another one of the same files."""
    if layer.media_type in GZIP_LAYERS:
        return Descriptor(DOCKER_LAYER_GZIP, layer.digest, layer.size_bytes)
    size = 0

    async def chunks(offset: int) -> AsyncIterator[bytes]:
        nonlocal size
        assert offset == 0, "an upload of an unknown digest begins at 0"
        compress = zlib.compressobj(1, wbits=31)  # no time and no name: the same bytes always give the same
        async with aclosing(blob_reader(storage, layer)()) as pieces:
            async for piece in pieces:
                made = await run_blocking(lambda piece=piece: compress.compress(piece))  # type: ignore[misc]
                size += len(made)
                yield made
        made = compress.flush()
        size += len(made)
        yield made

    digest = await storage.write_content(f"{UPLOAD_PREFIX}gzip-{layer.digest}", chunks)
    await add_to_lease(storage, digest)  # a blob that turned out to exist only at the end is not in it
    return Descriptor(DOCKER_LAYER_GZIP, digest, size)
