"""Targets: packages and archives, and the manifests and indexes in them."""

import gzip
import io
import json
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

from fuzz.environment import loop
from fuzz.harness import CrashError, Target
from fuzz.mutation import make_tar, mutate_json, mutate_tar
from moorage import errors
from moorage.containerd.types import Content
from moorage.oci.digest import check_digest
from moorage.oci.index import is_index, select_entry
from moorage.oci.limits import CONFIG_BYTES
from moorage.oci.manifest import RawManifest, check_plugin, media_type_of, parse_diff_ids, parse_manifest
from moorage.oci.platforms import Platform
from moorage.oci.reference import check_target
from moorage.packages import pull
from moorage.packages.archive_import import ArchiveSource, import_archive, list_packages
from moorage.packages.create import repack_package
from moorage.packages.image import resolve_image
from moorage.packages.tar import ArchiveReader
from moorage.plugins import parse_reference
from support.layouts import OCI, OCI_INDEX, Layout, digest_of, layer_tar

HOST = Platform("linux", "arm", "v7")
REFERENCE = parse_reference("localhost:5000/a/b:c")
CONFIG = {"entrypoint": ["/p"], "interface": {"types": ["docker.volumedriver/1.0"], "socket": "p.sock"}}
_DOCKER_CONFIG, _DOCKER_LAYER = (
    "application/vnd.docker.plugin.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
)
_DIGEST = "sha256:" + "1" * 64


def finish(work: Coroutine[Any, Any, object]) -> None:
    """Run what never waits for anything: without an event loop, an execution takes microseconds."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise CrashError("it waits for something")


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    """The bytes in pieces of this size."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


# -------------------------------------------------------------------------------------------------------- tar


def read_package(data: bytes) -> None:
    """A package of ``create``: what comes out of it is a layer that a strict reader takes."""
    chunks = iter([data[at : at + 7000] for at in range(0, len(data), 7000)])
    made: list[bytes] = []
    if len(repack_package(lambda: next(chunks, b""), made.append)) > CONFIG_BYTES:
        raise CrashError("the config is larger than its limit")
    layer = gzip.decompress(b"".join(made))

    async def check() -> None:
        async for entry in _names_of(layer):
            if entry.startswith("/") or ".." in entry.split("/"):
                raise CrashError(f"the entry {entry!r} leads out of the layer")

    finish(check())


async def _names_of(layer: bytes) -> AsyncIterator[str]:
    with tarfile.open(fileobj=io.BytesIO(layer), encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            yield member.name
            if member.islnk():
                yield member.linkname


def read_archive(data: bytes) -> None:
    """Every entry of a tar stream."""
    chunks = iter([data[at : at + 3000] for at in range(0, len(data), 3000)])
    reader = ArchiveReader(lambda: next(chunks, b""))
    while (entry := reader.next()) is not None:
        name, size_bytes, is_file = entry
        if name.startswith("/") or ".." in name.split("/"):
            raise CrashError(f"the entry {name!r} leads out of the archive")
        if is_file and size_bytes < 100 and len(reader.read()) != size_bytes:
            raise CrashError(f"the entry {name!r} has another size than it says")


# ---------------------------------------------------------------------------------------------------- layouts


class MemoryStorage:
    """Containerd's content store, as far as archives need it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    async def write_content(
        self, ref: str, chunks: Callable[[int], AsyncIterator[bytes]], *, digest: str = "", size_bytes: int = 0
    ) -> str:
        if digest in self.blobs:
            return digest
        data = b"".join([each async for each in chunks(0)])
        if digest_of(data) != digest or len(data) != size_bytes:
            raise errors.Invalid(f"{digest}: other bytes")
        self.blobs[digest] = data
        return digest

    async def abort_ingest(self, ref: str) -> None:
        raise errors.NotFound(ref)

    async def get_content(self, digest: str) -> Content:
        if digest not in self.blobs:
            raise errors.NotFound(digest)
        return Content(digest, len(self.blobs[digest]))

    async def verify_content(self, digest: str) -> Content:
        return await self.get_content(digest)

    @asynccontextmanager
    async def read_content(self, digest: str) -> AsyncIterator[AsyncIterator[bytes]]:
        yield pieces(self.blobs[(await self.get_content(digest)).digest], 1000)


def read_layout(data: bytes) -> None:
    """An archive of ``load``, and what is found in it."""

    async def read() -> None:
        storage = cast(Any, MemoryStorage())
        layout = await import_archive(storage, pieces(data, 5000))
        for listed in list_packages(layout):
            source = ArchiveSource(storage, layout, [listed])
            try:
                await pull.resolve_package(source, REFERENCE, HOST)
            except (errors.Invalid, errors.NotFound, errors.Unsupported):
                await resolve_image(source, REFERENCE, json.dumps(CONFIG).encode(), HOST)

    loop().run_until_complete(read())


def _layout(*, is_image: bool = False) -> bytes:
    layout = Layout()
    layer = layer_tar({"p": (b"#!", 0o755)})
    target = layout.image([layer]) if is_image else layout.plugin(CONFIG, [layer])
    layout.list(target, "localhost:5000/a/b:c", platform={"os": "linux", "architecture": "arm", "variant": "v7"})
    return layout.tar()


# --------------------------------------------------------------------------------------------------- manifests


class OneManifest:
    """A source whose manifest and blobs are the same foreign bytes."""

    def __init__(self, manifest: RawManifest) -> None:
        self._manifest = manifest

    async def resolve(self, reference: object) -> RawManifest:
        return self._manifest

    async def read_manifest(self, target: str) -> RawManifest:
        check_target(target)
        return self._manifest

    async def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        yield self._manifest.data[offset:]


def read_manifest(data: bytes) -> None:
    """A manifest or an index, of a plugin or an image, from a registry or an archive."""
    kind = media_type_of(data)
    manifest = RawManifest(data, kind, digest_of(data))
    kinds = (errors.Invalid, errors.NotFound, errors.Unsupported)
    source = cast(Any, OneManifest(manifest))
    tries: tuple[Callable[[], object], ...] = (
        lambda: check_digest(select_entry(manifest, "a", HOST)) if is_index(manifest) else None,
        lambda: check_plugin(parse_manifest(manifest, "a"), "a"),
        lambda: finish(pull.resolve_package(source, REFERENCE, HOST)),
        lambda: finish(resolve_image(source, REFERENCE, json.dumps(CONFIG).encode(), HOST)),
        lambda: parse_diff_ids(data, "a"),
    )
    for one in tries:
        try:
            one()
        except kinds as error:
            str(error).encode(errors="surrogateescape")


def _descriptor(kind: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _DIGEST, "size": 5, **more}


_MANIFEST = {
    "schemaVersion": 2,
    "mediaType": OCI,
    "config": _descriptor(_DOCKER_CONFIG),
    "layers": [_descriptor(_DOCKER_LAYER)],
}
_INDEX = {
    "schemaVersion": 2,
    "mediaType": OCI_INDEX,
    "manifests": [
        _descriptor(OCI, platform={"os": "linux", "architecture": "arm", "variant": "v6"}),
        _descriptor(
            OCI, platform={"os": "unknown", "architecture": "unknown"}, annotations={"vnd.docker.reference.type": "a"}
        ),
        _descriptor(OCI),
    ],
}
_IMAGE = {
    **_MANIFEST,
    "config": _descriptor("application/vnd.oci.image.config.v1+json"),
    "rootfs": {"diff_ids": [_DIGEST]},
}
_KEYS = (
    "mediaType",
    "config",
    "layers",
    "manifests",
    "digest",
    "size",
    "annotations",
    "platform",
    "os",
    "architecture",
    "variant",
    "rootfs",
)

_RAW = json.dumps(CONFIG).encode()
_FILES = {"config.json": _RAW, "rootfs": None, "rootfs/p": b"#!/bin/sh\n", "rootfs/" + "long/" * 30 + "é": b"1" * 600}
_PACKAGES = (make_tar(_FILES), make_tar(_FILES, tarfile.GNU_FORMAT), gzip.compress(make_tar(_FILES)))

TARGETS = (
    Target("package", "the tar of a package", read_package, _PACKAGES, mutate_tar, executions=900),
    Target("archive", "entries of a tar stream", read_archive, _PACKAGES, mutate_tar, executions=900),
    Target(
        "layout", "an OCI archive", read_layout, (_layout(), _layout(is_image=True)), mutate_tar, executions=600,
        kinds=(errors.Invalid, errors.NotFound, errors.Unsupported),
    ),
    Target(
        "manifest", "manifests, indexes, configs of images", read_manifest,
        tuple(json.dumps(each).encode() for each in (_MANIFEST, _INDEX, _IMAGE)), partial(mutate_json, keys=_KEYS), executions=1200,
    ),
)  # fmt: skip
