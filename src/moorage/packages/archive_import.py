"""Imports OCI archives: blobs go into containerd as they arrive, then the index says what they are.

Nothing is unpacked here, and nothing is on the disk but containerd's store; blobs that no package refers to are
collected after the lease ends. Source: the OCI image layout specification 1.1.
"""

import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence, Set
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import anyio
from msgspec import Struct, field
from msgspec.structs import replace

from moorage import errors
from moorage._lib.values import repr_without
from moorage.oci.descriptor import Descriptor, check_descriptor
from moorage.oci.index import build_index, parse_index
from moorage.oci.limits import CONFIG_BYTES, INDEX_ENTRIES, MANIFEST_BYTES
from moorage.oci.manifest import RawManifest, media_type_of
from moorage.oci.media_types import MANIFESTS_AND_INDEXES, SIGNATURE_ARTIFACTS
from moorage.packages.archive_export import NAME_ANNOTATION, REFERENCE_ANNOTATION, TAG_ANNOTATION
from moorage.packages.content import UPLOAD_PREFIX, add_to_lease, blob_reader, read_blob
from moorage.packages.pull import ResolvedPackage, VerifySignatures, resolve_package
from moorage.packages.source import Source
from moorage.packages.tar import Entry, OtherEntry, read_entries
from moorage.plugins import Reference, parse_reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = (
    "Archive",
    "ArchiveSource",
    "ArchivedPackage",
    "ArchivedPlugin",
    "import_archive",
    "list_packages",
    "list_signatures",
    "resolve_plugins",
)

log = logging.getLogger(__name__)

_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_SIGNATURE_NAME = re.compile(r"(^|:)sha256-[0-9a-f]{64}\.sig$")
_COSIGN_KIND = "dev.cosignproject.cosign/sigs"
_MAX_NAMES = 100  # other names that are stored

_ROOT_DIRECTORIES = frozenset({".dockerenv", "bin", "dev", "etc", "lib", "proc", "sbin", "sys", "usr", "var"})
_IMAGE_ID = 64  # digits of the directories in an archive of an old docker save


class Archive(Struct):
    """An archive whose blobs have been imported."""

    index: bytes = b""
    config: bytes = b""
    """A config.json besides the layout, of a plugin to be created from an image; empty if there is none."""
    blobs: set[str] = field(default_factory=set)
    """Digests."""
    names: set[str] = field(default_factory=set)
    """First components of the names in it, some of them: they show what it is if it is not an OCI archive."""

    __repr__ = repr_without("index", "config")


class ArchivedPackage(Struct, frozen=True):
    """One entry of an archive's index."""

    name: str
    """Of the plugin; empty if the archive does not state it, or only a tag."""
    reference: str
    """The reference that it was pulled from; empty if that is its name."""
    target: Descriptor
    """Its manifest or index, with the platform that the index states."""


class ArchiveSource:
    """The manifests and blobs of one name in an imported archive, as a ``Source``."""

    def __init__(self, storage: "Storage", archive: Archive, packages: Sequence[ArchivedPackage]) -> None:
        """``packages`` are the entries of one name: one, or one for each platform."""
        self._storage = storage
        self._archive = archive
        self._packages = packages

    async def resolve(self, reference: Reference) -> RawManifest:
        """The manifest or index of the name. Raises: errors.Invalid if the archive does not have it."""
        if len(self._packages) == 1:
            return await self._read(self._packages[0].target)
        return build_index(each.target for each in self._packages)

    async def read_manifest(self, target: str) -> RawManifest:
        """The manifest or index with this digest. Raises: errors.Invalid if the archive does not have it."""
        self._check(target)
        size = (await self._storage.get_content(target)).size_bytes
        known = next((each.target for each in self._packages if each.target.digest == target), None)
        return await self._read(known or Descriptor("", target, size))

    async def find_manifest(self, target: str) -> RawManifest | None:
        """The manifest with this digest; None if the archive does not have it. It has no tags."""
        return await self.read_manifest(target) if target in self._archive.blobs else None

    async def read_referrers(self, digest: str, artifact_type: str) -> bytes | None:
        """All signatures of the archive, whatever they sign: only their contents say so."""
        signatures = list_signatures(self._archive)
        return build_index(replace(each, artifact_type=artifact_type) for each in signatures).data

    async def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on. Raises: errors.Invalid if it is missing, or of another size."""
        self._check(digest)
        real = (await self._storage.get_content(digest)).size_bytes
        if real != size_bytes:
            raise errors.Invalid(f"cannot read the archive: {digest} has {real} bytes where {size_bytes} were promised")
        skip = offset
        async with aclosing(blob_reader(self._storage, Descriptor("", digest, size_bytes))()) as pieces:
            async for piece in pieces:
                if rest := piece[skip:]:
                    yield rest
                skip = max(0, skip - len(piece))

    async def _read(self, target: Descriptor) -> RawManifest:
        self._check(target.digest)
        data = await read_blob(self._storage, target, MANIFEST_BYTES)
        kind = target.media_type or media_type_of(data)
        if kind not in MANIFESTS_AND_INDEXES:
            raise errors.Unsupported(f"cannot read the archive: {target.digest} is a {kind}, not a manifest")
        return RawManifest(data, kind, target.digest)

    def _check(self, digest: str) -> None:
        if digest not in self._archive.blobs:
            raise errors.Invalid(f"cannot read the archive: {digest} is not in it")


class ArchivedPlugin(Struct, frozen=True):
    """A plugin of an archive, resolved for this host."""

    local: str
    """Its name on this host, with the tag."""
    reference: str
    """The reference that it was pulled from, or its name."""
    source: ArchiveSource
    resolved: ResolvedPackage


async def import_archive(storage: "Storage", body: AsyncIterator[bytes]) -> Archive:
    """Read a whole archive; every blob is stored, verified, and added to the lease of ``storage``.

    Raises:
        errors.Invalid: naming the entry: it is not an archive, or is truncated or damaged, or leads out of itself
        errors.Unavailable: the disk is full, or containerd does not answer
        Exception: what ``body`` raises
    """
    archive = Archive()
    try:
        await _import_entries(storage, body, archive)
    except OtherEntry as error:
        archive.names.add(error.name.partition("/")[0])
        raise errors.Invalid(f"{error}{_describe_other(archive.names)}") from error
    except errors.MoorageError as error:
        if errors.is_disk_full(error):
            raise errors.Unavailable(f"cannot import the archive: the disk is full ({error})") from error
        raise
    return archive


async def _import_entries(storage: "Storage", body: AsyncIterator[bytes], archive: Archive) -> None:
    async for entry in read_entries(body):
        if len(archive.names) < _MAX_NAMES:
            archive.names.add(entry.name.partition("/")[0])
        if not entry.is_file:
            continue
        if blob := _BLOB.fullmatch(entry.name):
            digest = f"sha256:{blob[1]}"
            await _store(storage, entry, digest)
            archive.blobs.add(digest)
        elif entry.name == "index.json":
            archive.index = await entry.read(MANIFEST_BYTES)
        elif entry.name == "config.json":
            archive.config = await entry.read(CONFIG_BYTES)


async def resolve_plugins(
    storage: "Storage", archive: Archive, name: str, verify: VerifySignatures
) -> Sequence[ArchivedPlugin]:
    """The plugins of an archive, resolved for this host; ``name`` ("": its own) is for an archive with one.

    ``verify`` is called for each repository that a plugin is said to be from.

    Raises:
        errors.Invalid: it is not an archive of plugins, one has no name, or ``name`` is given for several
        errors.NotFound: a plugin has no package for this platform
        errors.Denied: a plugin is not signed as required
        errors.Unavailable: containerd does not answer
    """
    found = []
    for given, packages in _by_name(list_packages(archive), name):
        first, reference = packages[0], parse_reference(given)
        source = ArchiveSource(storage, archive, packages)
        pulled_from = first.reference or (str(reference.with_default_tag()) if first.name else reference.local_name)
        resolved = await resolve_package(source, reference, verify=_for_each_origin(verify, given, first))
        found.append(ArchivedPlugin(reference.local_name, pulled_from, source, resolved))
    return found


def _by_name(packages: Sequence[ArchivedPackage], name: str) -> list[tuple[str, list[ArchivedPackage]]]:
    """The entries of each plugin by its name. Raises: Invalid if one has none, or ``name`` is given for several."""
    found: dict[str, list[ArchivedPackage]] = {}
    for each in packages:
        found.setdefault(each.name, []).append(each)
    if name:
        if len(found) > 1:
            raise errors.Invalid(f"cannot load {len(found)} plugins as {name}: leave the name out")
        return [(name, list(packages))]
    if "" in found:
        raise errors.Invalid("cannot load the archive: it does not say what its plugin is called; give a name (--name)")
    return list(found.items())


def _for_each_origin(verify: VerifySignatures, given: str, package: ArchivedPackage) -> VerifySignatures:
    """Verifies the signatures of the archive for each repository that a plugin is said to be from.

    A name without a repository is an alias and does not say where it was pulled from, unless there is nothing else.
    """
    texts = [each for each in (package.reference, package.name, given) if each]
    known = [parse_reference(each).with_default_tag() for each in texts]
    origins = [each for each in known if "/" in each.familiar_name or each == known[0]]

    async def verify_all(source: Source, _: Reference, digests: Sequence[str]) -> None:
        for origin in dict.fromkeys(origins):
            await verify(source, origin, digests)

    return verify_all


def list_packages(archive: Archive) -> tuple[ArchivedPackage, ...]:
    """The packages that the index of an archive lists, in its order.

    Raises:
        errors.Invalid: it has no index, or one that cannot be read
        errors.Unsupported: an entry is neither a manifest nor an index
    """
    if not archive.index:
        hint = _describe_other(archive.names)
        raise errors.Invalid(f"cannot read the archive: it has no index.json, so it is no OCI archive{hint}")
    entries = _entries_of(archive.index)
    return tuple(_archived_package(each, number) for number, each in enumerate(entries) if not _is_signature(each))


def list_signatures(archive: Archive) -> tuple[Descriptor, ...]:
    """The manifests of signatures that the index of an archive lists.

    Raises:
        errors.Invalid: it has no index, or one that cannot be read
    """
    entries = _entries_of(archive.index)
    return tuple(
        check_descriptor(each, "cannot read the archive: a signature") for each in entries if _is_signature(each)
    )


def _is_signature(entry: Descriptor) -> bool:
    """Whether an entry is of signatures: as ``cosign save`` marks them, by cosign's tag, or by the artifact's type."""
    annotations = entry.annotations
    names = (annotations.get(TAG_ANNOTATION), annotations.get(NAME_ANNOTATION))
    return (
        annotations.get("kind") == _COSIGN_KIND
        or entry.artifact_type in SIGNATURE_ARTIFACTS
        or any(each is not None and _SIGNATURE_NAME.search(each) for each in names)
    )


def _entries_of(data: bytes) -> Sequence[Descriptor]:
    """The entries of an archive's index.

    Raises:
        Invalid: it is not an index, or has no entries or too many.
    """
    entries = parse_index(data, "cannot read the archive: index.json")
    if not 0 < len(entries) <= INDEX_ENTRIES:
        raise errors.Invalid(f"cannot read the archive: index.json lists no manifests, or over {INDEX_ENTRIES}")
    return entries


def _archived_package(entry: Descriptor, number: int) -> ArchivedPackage:
    target = check_descriptor(entry, f"cannot read the archive: entry {number} of index.json")
    if target.media_type not in MANIFESTS_AND_INDEXES:
        raise errors.Unsupported(f"cannot read the archive: entry {number} of index.json is a {target.media_type}")
    annotations = target.annotations
    name = annotations.get(NAME_ANNOTATION, "")
    if not name and any(each in annotations.get(TAG_ANNOTATION, "") for each in "/:"):  # a bare tag is not a name
        name = annotations[TAG_ANNOTATION]
    reference = annotations.get(REFERENCE_ANNOTATION, "")
    for each in filter(None, (name, reference)):
        try:
            parse_reference(each)
        except errors.Invalid as error:
            raise errors.Invalid(f"cannot read the archive: entry {number} of index.json: {error}") from error
    return ArchivedPackage(name, reference, target)


async def _store(storage: "Storage", entry: Entry, digest: str) -> None:
    ref = f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"

    async def chunks(offset: int) -> AsyncIterator[bytes]:
        assert offset == 0, "a new upload begins at 0"
        async for chunk in entry.chunks():
            yield chunk

    try:
        await storage.write_content(ref, chunks, digest=digest, size_bytes=entry.size_bytes)
    except errors.Invalid as error:
        if entry.left_bytes:  # truncated, with the error of the archive
            await _abort(storage, ref)
            raise
        raise errors.Invalid(f"cannot read the archive: {entry.name} is not what its name says: {error}") from error
    except BaseException:
        await _abort(storage, ref)
        raise
    await add_to_lease(storage, digest)  # a blob that turned out to exist only at the end is not in it


async def _abort(storage: "Storage", ref: str) -> None:
    with anyio.CancelScope(shield=True), suppress(errors.NotFound):
        try:
            await storage.abort_ingest(ref)
        except errors.NotFound:
            raise
        except errors.MoorageError as error:
            log.info("cannot delete upload %s, the end of its lease does: %s", ref, error)


def _describe_other(names: Set[str]) -> str:
    """The end of an error that says what an archive is instead, by the names in it; empty if it is unknown."""
    if {"manifest.json", "repositories"} & names or any(_is_image_id(each) for each in names):
        return (
            "; it is an archive of docker save: turn it into one with "
            "skopeo copy docker-archive:FILE oci-archive:image.tar, and give that"
        )
    if {"config.json", "rootfs"} <= names:
        return "; it is a plugin's package: unpack it, and create the plugin of that directory, without --from"
    if _ROOT_DIRECTORIES & names:
        return (
            "; it is a root file system, as docker export writes it: unpack it into DIRECTORY/rootfs, "
            "beside a config.json, and create the plugin of DIRECTORY, without --from"
        )
    return ""


def _is_image_id(name: str) -> bool:
    return len(name) == _IMAGE_ID and not set(name) - set("0123456789abcdef")
