"""Packages out of an OCI archive: its blobs go into containerd as they come, then its index says what they are.

Nothing is unpacked here and nothing lies on the disk beside containerd's store; what is not a package of the archive is
collected when the lease ends. Source: the OCI image layout specification 1.1.
"""

import hashlib
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import anyio
import msgspec
from msgspec import Struct, field

from moorage import errors
from moorage._lib.values import repr_without
from moorage.containerd.types import Descriptor
from moorage.distribution._check import Manifest
from moorage.distribution._other_archives import explain_other
from moorage.distribution._retar import CONFIG_LIMIT
from moorage.distribution._untar import Entry, OtherEntry, read_entries
from moorage.distribution.archive import NAME_NOTE, REFERENCE_NOTE, TAG_NOTE
from moorage.distribution.package import UPLOAD_PREFIX
from moorage.distribution.signatures import ARTIFACT_TYPES
from moorage.distribution.stored import (
    INDEX_TYPES,
    MANIFEST_LIMIT,
    SINGLE_TYPES,
    bytes_of,
    hold,
    media_type_of,
    read_small,
    to_descriptor,
)
from moorage.plugins import Reference, parse_reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("Layout", "LayoutSource", "Listed", "list_packages", "list_signatures", "take_layout")

log = logging.getLogger(__name__)

_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")
_SIGNATURE_NAME = re.compile(r"(^|:)sha256-[0-9a-f]{64}\.sig$")
_COSIGN_KIND = "dev.cosignproject.cosign/sigs"
_MOST_OTHERS = 100  # names that are remembered
_MOST = 1000  # packages in an archive, and entries of an index


class Layout(Struct):
    """What an archive had besides blobs, which are in containerd by now."""

    index: bytes = b""
    config: bytes = b""
    """A config.json beside the layout; where it is none of an archive's own business it is empty."""
    blobs: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    """The first parts of other names, some of them: they say what it is instead."""

    __repr__ = repr_without("index", "config")


class Listed(Struct, frozen=True):
    """One entry of an archive: the names that it is given there, and its manifest or index."""

    name: str
    """Empty where the archive does not say, or says no more than a tag."""
    reference: str
    """Where it came from; empty where that is its name."""
    target: Descriptor
    raw: object
    """The entry as the index has it, its platform too."""

    __repr__ = repr_without("raw")


class LayoutSource:
    """What an archive had for one name: manifests and blobs, which lie in containerd, as ``Source`` has them."""

    def __init__(self, storage: "Storage", layout: Layout, listed: Sequence[Listed]) -> None:
        """``listed`` are the entries of one name: one, or one for each platform."""
        self._storage = storage
        self._layout = layout
        self._listed = listed

    async def resolve(self, reference: Reference) -> Manifest:
        """The manifest, or the index, that goes by the name. Raises: Invalid where the archive has it not."""
        if len(self._listed) == 1:
            return await self._read(self._listed[0].target)
        kind = INDEX_TYPES[1]
        document = {"schemaVersion": 2, "mediaType": kind, "manifests": [each.raw for each in self._listed]}
        data = json.dumps(document).encode()
        return Manifest(data, kind, f"sha256:{hashlib.sha256(data).hexdigest()}")

    async def read_manifest(self, target: str) -> Manifest:
        """The manifest or index with this digest. Raises: Invalid where the archive has it not, or it is none."""
        self._check(target)
        size = (await self._storage.get_content(target)).size_bytes
        known = next((each.target for each in self._listed if each.target.digest == target), None)
        return await self._read(known or Descriptor("", target, size))

    async def find_manifest(self, target: str) -> Manifest | None:
        """The manifest with this digest; None where the archive has it not. It knows no tags."""
        return await self.read_manifest(target) if target in self._layout.blobs else None

    async def read_referrers(self, digest: str, artifact_type: str) -> bytes | None:
        """All signatures of the archive, whatever they sign: an archive does not say so outside of them."""
        signatures = list_signatures(self._layout)
        entries = [
            {
                "mediaType": each.media_type,
                "digest": each.digest,
                "size": each.size_bytes,
                "artifactType": artifact_type,
            }
            for each in signatures
        ]
        return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()

    async def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on. Raises: Invalid where it is not there, or of another size."""
        self._check(digest)
        real = (await self._storage.get_content(digest)).size_bytes
        if real != size_bytes:
            raise errors.Invalid(f"cannot read the archive: {digest} has {real} bytes where {size_bytes} were promised")
        skip = offset
        async with aclosing(bytes_of(self._storage, Descriptor("", digest, size_bytes))()) as pieces:
            async for piece in pieces:
                if rest := piece[skip:]:
                    yield rest
                skip = max(0, skip - len(piece))

    async def _read(self, target: Descriptor) -> Manifest:
        self._check(target.digest)
        data = await read_small(self._storage, target, MANIFEST_LIMIT)
        kind = target.media_type or media_type_of(data)
        if kind not in (*SINGLE_TYPES, *INDEX_TYPES):
            raise errors.Unsupported(f"cannot read the archive: {target.digest} is a {kind}, and no manifest")
        return Manifest(data, kind, target.digest)

    def _check(self, digest: str) -> None:
        if digest not in self._layout.blobs:
            raise errors.Invalid(f"cannot read the archive: {digest} is not in it")


async def take_layout(storage: "Storage", body: AsyncIterator[bytes]) -> Layout:
    """Read an archive to its end; every blob is stored, checked, and held by the lease of ``storage``.

    Raises: Invalid naming the entry for what is damaged, cut off or leads elsewhere; what the body raises; Unavailable.
    """
    layout = Layout()
    try:
        await _take_entries(storage, body, layout)
    except OtherEntry as error:
        layout.others.add(error.name.partition("/")[0])
        raise errors.Invalid(f"{error}{explain_other(layout.others)}") from error
    return layout


async def _take_entries(storage: "Storage", body: AsyncIterator[bytes], layout: Layout) -> None:
    async for entry in read_entries(body):
        if len(layout.others) < _MOST_OTHERS:
            layout.others.add(entry.name.partition("/")[0])
        if not entry.is_file:
            continue
        if blob := _BLOB.fullmatch(entry.name):
            digest = f"sha256:{blob[1]}"
            await _store(storage, entry, digest)
            layout.blobs.add(digest)
        elif entry.name == "index.json":
            layout.index = await entry.read(MANIFEST_LIMIT)
        elif entry.name == "config.json":
            layout.config = await entry.read(CONFIG_LIMIT)


def list_packages(layout: Layout) -> tuple[Listed, ...]:
    """What the index of an archive lists, in its order. Raises: Invalid for one that cannot be understood."""
    if not layout.index:
        what = explain_other(layout.others)
        raise errors.Invalid(f"cannot read the archive: it has no index.json, so it is no OCI archive{what}")
    entries = entries_of(layout.index, "index.json")
    return tuple(_listed(each, at) for at, each in enumerate(entries) if not _is_signature(each))


def list_signatures(layout: Layout) -> tuple[Descriptor, ...]:
    """The manifests of signatures that the index of an archive lists. Raises: Invalid, as ``list_packages``."""
    entries = entries_of(layout.index, "index.json")
    return tuple(to_descriptor(each, "cannot read the archive: a signature") for each in entries if _is_signature(each))


def _is_signature(value: object) -> bool:
    """Whether an entry is of signatures: as ``cosign save`` marks them, by cosign's tag, or by the artifact's type."""
    fields = value if isinstance(value, dict) else {}
    notes = fields.get("annotations")
    notes = notes if isinstance(notes, dict) else {}
    names = (notes.get(TAG_NOTE), notes.get(NAME_NOTE))
    return (
        notes.get("kind") == _COSIGN_KIND
        or fields.get("artifactType") in ARTIFACT_TYPES
        or any(isinstance(each, str) and _SIGNATURE_NAME.search(each) for each in names)
    )


def entries_of(data: bytes, what: str) -> Sequence[object]:
    """The entries of an index. Raises: Invalid."""
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"cannot read the archive: {what} is not JSON") from error
    entries = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= _MOST:
        raise errors.Invalid(f"cannot read the archive: {what} lists no manifests, or over {_MOST}")
    return entries


def _listed(value: object, at: int) -> Listed:
    target = to_descriptor(value, f"cannot read the archive: entry {at} of index.json")
    if target.media_type not in (*SINGLE_TYPES, *INDEX_TYPES):
        raise errors.Unsupported(f"cannot read the archive: entry {at} of index.json is a {target.media_type}")
    notes = target.annotations
    name = notes.get(NAME_NOTE, "")
    if not name and any(each in notes.get(TAG_NOTE, "") for each in "/:"):  # a bare tag is the name of nothing
        name = notes[TAG_NOTE]
    reference = notes.get(REFERENCE_NOTE, "")
    for each in filter(None, (name, reference)):
        try:
            parse_reference(each)
        except errors.Invalid as error:
            raise errors.Invalid(f"cannot read the archive: entry {at} of index.json: {error}") from error
    return Listed(name, reference, target, value)


async def _store(storage: "Storage", entry: Entry, digest: str) -> None:
    ref = f"{UPLOAD_PREFIX}{secrets.token_hex(8)}"

    async def chunks(offset: int) -> AsyncIterator[bytes]:
        assert offset == 0, "the ref is new"
        async for chunk in entry.chunks():
            yield chunk

    try:
        await storage.write_content(ref, chunks, digest=digest, size_bytes=entry.size_bytes)
    except errors.Invalid as error:
        if entry.left_bytes:  # cut off, in the archive's own words
            await _abort(storage, ref)
            raise
        raise errors.Invalid(f"cannot read the archive: {entry.name} is not what its name says: {error}") from error
    except BaseException:
        await _abort(storage, ref)
        raise
    await hold(storage, digest)  # one that turned out to be there only at the end was not added to our lease


async def _abort(storage: "Storage", ref: str) -> None:
    with anyio.CancelScope(shield=True), suppress(errors.NotFound):
        try:
            await storage.abort_ingest(ref)
        except errors.NotFound:
            raise
        except errors.MoorageError as error:
            log.info("cannot throw away %s, the end of its lease does: %s", ref, error)
