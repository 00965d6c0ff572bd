"""Layers out of containerd's content store into its snapshots, one on another, by containerd's diff service.

A snapshot is named by its chain: the diff id of a first layer, then ``sha256(<chain below> <diff id>)``, so plugins on
the same layers share them. Source: the OCI image specification, ChainID; containerd's ``rootfs.ApplyLayers``.
"""

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from moorage import errors
from moorage._lib.keylocks import KeyedLocks
from moorage._lib.write_back import WriteBack
from moorage.containerd.types import Descriptor, Mount, SnapshotKind

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("Unpacking", "chain_id")

log = logging.getLogger(__name__)

_DIFF_ID = "containerd.io/uncompressed"
"""Label of a layer's blob: its diff id, as it came out when it was unpacked. containerd's own clients set it too."""

_APPLIED_AS = "application/vnd.docker.image.rootfs.diff.tar"
"""The type under which containerd tells plain, gzip and zstd apart by the bytes; OCI's types it takes by their word."""


def chain_id(below: str, diff_id: str) -> str:
    """The name of a layer with this diff id on top of a chain; ``below`` is empty for the first one."""
    return f"sha256:{hashlib.sha256(f'{below} {diff_id}'.encode()).hexdigest()}" if below else diff_id


class Unpacking:
    """A root file system as it grows, layer by layer, in the order of the manifest.

    ``storage`` works under ``lease``, which holds every snapshot that is made or used. ``scratch`` begins the names of
    snapshots that are gone at the end; on failure only the lease holds them.
    """

    def __init__(
        self, storage: "Storage", lease: str, snapshotter: str, scratch: str, locks: KeyedLocks[str] | None = None
    ) -> None:
        """``locks`` are shared by all who unpack at the same time, so that a layer is unpacked once."""
        self.chain = ""
        """Name of the committed snapshot with all layers so far; empty before the first."""
        self.diff_ids: tuple[str, ...] = ()
        self._storage = storage
        self._lease = lease
        self._snapshotter = snapshotter
        self._scratch = scratch
        self._locks = locks if locks is not None else KeyedLocks()
        self._write_back = WriteBack()

    async def add(self, layer: Descriptor, promised: str = "") -> bool:
        """Put a layer, whose blob is there, on top of those so far; False where another plugin has it there already.

        ``promised`` is its diff id where the config of the package has it: what a blob's label says otherwise is then
        not believed. Only an intact blob is unpacked.

        Raises: Invalid for bytes that are no layer, DamagedContent, Unavailable for a full disk.
        """
        async with self._locks.hold(f"{self.chain} {layer.digest}"):
            diff_id = (await self._storage.verify_content(layer.digest)).labels.get(_DIFF_ID, "")
            is_known = diff_id if not promised or promised == diff_id else ""
            if is_new := not is_known or not await self._find(chain_id(self.chain, diff_id)):
                diff_id = await self._unpack(layer)
                await self._storage.set_content_labels(layer.digest, {_DIFF_ID: diff_id})
        self.chain = chain_id(self.chain, diff_id)
        self.diff_ids = (*self.diff_ids, diff_id)
        return is_new

    async def _find(self, chain: str) -> bool:
        """Whether there is such a snapshot, which our lease then holds."""
        await self._hold(chain)  # before the look: from then on no collection takes it
        try:
            found = await self._storage.get_snapshot(self._snapshotter, chain)
        except errors.NotFound:
            return False
        return found.kind is SnapshotKind.COMMITTED

    async def _hold(self, chain: str) -> None:
        # containerd 1.6 does not add a snapshot that is there already when it is asked to make it
        await self._storage.add_snapshot_to_lease(self._lease, self._snapshotter, chain)

    async def _unpack(self, layer: Descriptor) -> str:
        key = f"{self._scratch}-{len(self.diff_ids)}"
        mounts = await self._storage.prepare_snapshot(self._snapshotter, key, self.chain)
        try:
            async with self._write_back.of(_directory(mounts)):
                diff_id = (await self._storage.apply(replace(layer, media_type=_APPLIED_AS), mounts)).digest
        except errors.MoorageError as error:
            raise _why(layer, error) from error
        await self._storage.verify_content(layer.digest)  # else the layer may lack what was cut off meanwhile
        chain = chain_id(self.chain, diff_id)
        await self._hold(chain)
        try:
            await self._storage.commit_snapshot(self._snapshotter, chain, key)
        except errors.Conflict:  # the same files in a blob of another compression
            await self._storage.remove_snapshot(self._snapshotter, key)
        return diff_id


def _directory(mounts: Sequence[Mount]) -> str:
    """Where what is written into a snapshot with these mounts goes: overlay's upper directory, or what is bound."""
    options = [option for mount in mounts for option in mount.options]
    uppers = [option.partition("=")[2] for option in options if option.startswith("upperdir=")]
    return next(iter(uppers or [mount.source for mount in mounts]), "")


def _why(layer: Descriptor, error: errors.MoorageError) -> errors.MoorageError:
    if errors.is_disk_full(error):
        return errors.Unavailable(f"cannot unpack layer {layer.digest}: the disk is full ({error})")
    if type(error) is not errors.MoorageError:  # containerd is away, or the blob is not there
        return error
    return errors.Invalid(f"cannot unpack layer {layer.digest}: {error}")
