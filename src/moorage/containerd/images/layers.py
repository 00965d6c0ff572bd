"""Snapshots of root file systems: layers unpacked one on another by containerd's diff service.

A snapshot is named by its chain id: the diff id of a first layer, then ``sha256(<chain below> <diff id>)``, so images
with the same layers share them. Source: the OCI image specification, ChainID; containerd's ``rootfs.ApplyLayers``.
"""

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.key_locks import KeyedLocks
from moorage.containerd.integrity import snapshot_directory
from moorage.containerd.types import SnapshotKind
from moorage.host.file_systems import WriteBack
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import digest_of
from moorage.oci.media_types import DOCKER_LAYER

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("DIFF_ID_LABEL", "ImportContext", "LayerUnpacker", "chain_id")

DIFF_ID_LABEL = "containerd.io/uncompressed"
"""Label of a layer's blob: its diff id, as unpacking it has shown. containerd's own clients set it too."""

_APPLIED_TYPE = DOCKER_LAYER
"""The type for which containerd detects plain, gzip and zstd by the bytes; of OCI's types it uses the name."""


class ImportContext(Struct, frozen=True):
    """Where an image or a package is imported to."""

    storage: "Storage"
    """containerd's storage under ``lease``: whatever is written through it is added to the lease."""
    lease: str
    """The id of a lease that the caller ends; then only what image records refer to stays."""
    snapshotter: str
    scratch: str
    """Prefix of the names of temporary snapshots, which are removed or committed in the end."""


def chain_id(below: str, diff_id: str) -> str:
    """The name of a layer with this diff id on top of a chain; ``below`` is empty for the first one."""
    return digest_of(f"{below} {diff_id}".encode()) if below else diff_id


class LayerUnpacker:
    """A root file system to which layers are added in the order of the manifest.

    Every snapshot that is made or used is added to the lease of the context. On failure only the lease keeps them.
    """

    def __init__(self, context: ImportContext, locks: KeyedLocks[str] | None = None) -> None:
        """``locks`` are shared by all imports at the same time, so that each layer is unpacked once."""
        self.chain = ""
        """Name of the committed snapshot with all layers so far; empty before the first."""
        self.diff_ids: tuple[str, ...] = ()
        self._context = context
        self._storage = context.storage
        self._locks = locks if locks is not None else KeyedLocks()
        self._write_back = WriteBack()

    async def add(self, layer: Descriptor, expected: str = "") -> bool:
        """Put a layer, whose blob is stored, on top of those so far; False if it was unpacked there already.

        ``expected`` is its diff id if the config of the package states it: a label of the blob that says something
        else is then not used. Only an intact blob is unpacked.

        Raises:
            errors.Invalid: its bytes are not a layer
            DamagedContent: the bytes are not those of its digest
            errors.Unavailable: the disk is full, or containerd does not answer
        """
        async with self._locks.lock(f"{self.chain} {layer.digest}"):
            diff_id = (await self._storage.verify_content(layer.digest)).labels.get(DIFF_ID_LABEL, "")
            is_known = diff_id if not expected or expected == diff_id else ""
            if is_new := not is_known or not await self._find(chain_id(self.chain, diff_id)):
                diff_id = await self._unpack(layer)
                await self._storage.set_content_labels(layer.digest, {DIFF_ID_LABEL: diff_id})
        self.chain = chain_id(self.chain, diff_id)
        self.diff_ids = (*self.diff_ids, diff_id)
        return is_new

    async def _find(self, chain: str) -> bool:
        """Whether there is such a snapshot, which our lease then keeps."""
        await self._lease(chain)  # before the query: from then on no collection removes it
        try:
            found = await self._storage.get_snapshot(self._context.snapshotter, chain)
        except errors.NotFound:
            return False
        return found.kind is SnapshotKind.COMMITTED

    async def _lease(self, chain: str) -> None:
        # containerd 1.6 does not add a snapshot that exists already when it is requested to make it
        await self._storage.add_snapshot_to_lease(self._context.lease, self._context.snapshotter, chain)

    async def _unpack(self, layer: Descriptor) -> str:
        key, snapshotter = f"{self._context.scratch}-{len(self.diff_ids)}", self._context.snapshotter
        mounts = await self._storage.prepare_snapshot(snapshotter, key, self.chain)
        try:
            async with self._write_back.of(snapshot_directory(mounts)):
                diff_id = (await self._storage.apply(replace(layer, media_type=_APPLIED_TYPE), mounts)).digest
        except errors.MoorageError as error:
            raise _unpack_error(layer, error) from error
        await self._storage.verify_content(layer.digest)  # else the layer may lack what was cut off meanwhile
        chain = chain_id(self.chain, diff_id)
        await self._lease(chain)
        try:
            await self._storage.commit_snapshot(snapshotter, chain, key)
        except errors.Conflict:  # the same files in a blob of another compression
            await self._storage.remove_snapshot(snapshotter, key)
        return diff_id


def _unpack_error(layer: Descriptor, error: errors.MoorageError) -> errors.MoorageError:
    if errors.is_disk_full(error):
        return errors.Unavailable(f"cannot unpack layer {layer.digest}: the disk is full ({error})")
    if type(error) is not errors.MoorageError:  # containerd does not answer, or the blob is missing
        return error
    return errors.Invalid(f"cannot unpack layer {layer.digest}: {error}")
