"""What plugins take of the disk: content and snapshots in containerd, data, logs. Nothing is changed."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage._lib.time_limit import call_bounded
from moorage.containerd.types import Content, Ingest, Snapshot, SnapshotKind
from moorage.host.directory_tree import tree_bytes
from moorage.packages.content import StoredPackage, read_manifest
from moorage.packages.snapshots import SNAPSHOTTERS
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("DiskUsage", "PluginUsage", "Pruned", "StoredPlugin", "measure_usage")

log = logging.getLogger(__name__)

_CONTENT_REF = "containerd.io/gc.ref.content."
_SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."
_MEASURE = DEFAULT.disk_usage  # seconds for one directory; a larger one is reported as 0


class StoredPlugin(Struct, frozen=True):
    """Where the data of a plugin are: its package in containerd, and its directories."""

    id: str
    package: StoredPackage
    data: Path
    """Its propagated mount."""
    logs: Path

    @property
    def name(self) -> str:
        """Its name, with the tag."""
        return self.package.name

    @property
    def root(self) -> tuple[str, str]:
        """Snapshotter and key of its root file system."""
        return self.package.snapshotter, self.package.snapshot


class PluginUsage(Struct, frozen=True):
    """What one plugin takes of the disk; ``shared`` is the part of it that other plugins have, too."""

    id: str
    name: str
    package_bytes: int
    """Manifest, config and layers, compressed."""
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
    """Incomplete blobs, which are being written or were left behind."""
    uploads_bytes: int
    unreferenced_bytes: int
    """Content and layers that no plugin refers to: of one that is being created, or left behind."""

    @property
    def total_bytes(self) -> int:
        """Of everything in containerd."""
        return self.content_bytes + self.layers_bytes + self.written_bytes + self.uploads_bytes


class Pruned(Struct, frozen=True):
    """What a prune has removed."""

    freed_bytes: int
    uploads: int
    under_way: int
    """Plugins that were being created or pulled; unless it is 0, uploads were not removed."""


async def measure_usage(storage: "Storage", plugins: Sequence[StoredPlugin]) -> DiskUsage:
    """What everything in containerd, and what these plugins take of the disk.

    Raises:
        errors.Unavailable: containerd does not answer
    """
    inventory = await _list_store(storage)
    blobs = {plugin.id: await _blobs_of(storage, plugin) for plugin in plugins}
    layers = {plugin.id: inventory.layers_of(*plugin.root) for plugin in plugins}
    found: list[PluginUsage] = []
    for plugin in plugins:
        others = [each.id for each in plugins if each is not plugin]
        shared_blobs = blobs[plugin.id] & {digest for each in others for digest in blobs[each]}
        shared_layers = layers[plugin.id] & {key for each in others for key in layers[each]}
        found.append(
            PluginUsage(
                id=plugin.id,
                name=plugin.name,
                package_bytes=inventory.content_bytes(blobs[plugin.id]),
                shared_package_bytes=inventory.content_bytes(shared_blobs),
                layers_bytes=inventory.snapshot_bytes(layers[plugin.id]),
                shared_layers_bytes=inventory.snapshot_bytes(shared_layers),
                written_bytes=inventory.snapshot_bytes({plugin.root}),
                data_bytes=await _directory_bytes(plugin, plugin.data),
                logs_bytes=await _directory_bytes(plugin, plugin.logs),
            )
        )
    unreferenced = await inventory.unreferenced_bytes(storage)
    return inventory.total(found, await storage.list_ingests(), unreferenced)


class _Inventory:
    """What containerd has, at one instant."""

    def __init__(self, content: Iterable[Content], snapshots: Mapping[tuple[str, str], Snapshot]) -> None:
        self.content = {each.digest: each for each in content}
        self.snapshots = snapshots
        self.usage: dict[tuple[str, str], int] = {}

    def content_bytes(self, digests: Iterable[str]) -> int:
        """Bytes of blobs."""
        return sum(self.content[digest].size_bytes for digest in digests if digest in self.content)

    def snapshot_bytes(self, keys: Iterable[tuple[str, str]]) -> int:
        """Bytes of snapshots, each without its parents."""
        return sum(self.usage.get(key, 0) for key in keys)

    def layers_of(self, snapshotter: str, key: str) -> set[tuple[str, str]]:
        """The committed snapshots that are the parents of this one."""
        found: set[tuple[str, str]] = set()
        snapshot = self.snapshots.get((snapshotter, key))
        while snapshot is not None and snapshot.parent and (snapshotter, snapshot.parent) not in found:
            found.add((snapshotter, snapshot.parent))
            snapshot = self.snapshots.get((snapshotter, snapshot.parent))
        return found

    async def unreferenced_bytes(self, storage: "Storage") -> int:
        """Bytes of blobs and snapshots that no image record refers to, directly or not."""
        blobs: set[str] = set()
        keys: set[tuple[str, str]] = set()
        waiting: list[str] = []
        for image in await storage.list_images():
            waiting.append(image.target.digest)
            keys |= self._snapshots_of(image.labels)
        while waiting:
            digest = waiting.pop()
            if digest in self.content and digest not in blobs:
                blobs.add(digest)
                labels = self.content[digest].labels
                waiting += [value for key, value in labels.items() if key.startswith(_CONTENT_REF)]
                keys |= self._snapshots_of(labels)
        return self.content_bytes(set(self.content) - blobs) + self.snapshot_bytes(set(self.snapshots) - keys)

    def _snapshots_of(self, labels: Mapping[str, str]) -> set[tuple[str, str]]:
        """The snapshots that labels refer to, with their parents."""
        found: set[tuple[str, str]] = set()
        for name, key in labels.items():
            if name.startswith(_SNAPSHOT_REF):
                snapshotter = name.removeprefix(_SNAPSHOT_REF).partition("/")[0]
                found |= {(snapshotter, key)} | self.layers_of(snapshotter, key)
        return found

    def total(self, plugins: Sequence[PluginUsage], uploads: Sequence[Ingest], unreferenced: int) -> DiskUsage:
        """The usage of everything."""
        committed = {key for key, each in self.snapshots.items() if each.kind is SnapshotKind.COMMITTED}
        return DiskUsage(
            plugins=tuple(plugins),
            content_bytes=self.content_bytes(self.content),
            layers_bytes=self.snapshot_bytes(committed),
            written_bytes=self.snapshot_bytes(set(self.snapshots) - committed),
            uploads=len(uploads),
            uploads_bytes=sum(each.offset_bytes for each in uploads),
            unreferenced_bytes=unreferenced,
        )


async def _list_store(storage: "Storage") -> _Inventory:
    snapshots: dict[tuple[str, str], Snapshot] = {}
    for snapshotter in SNAPSHOTTERS:
        with suppress(errors.NotFound, errors.Invalid):  # not in this containerd
            snapshots |= {(snapshotter, each.name): each for each in await storage.list_snapshots(snapshotter)}
    inventory = _Inventory(await storage.list_content(), snapshots)
    for snapshotter, key in snapshots:
        try:
            inventory.usage[snapshotter, key] = (await storage.snapshot_usage(snapshotter, key)).size_bytes
        except errors.Unavailable:
            raise
        except errors.MoorageError as error:  # gone since, or containerd cannot measure it: others can be
            log.debug("cannot measure snapshot %s: %s", key, error)
    return inventory


async def _directory_bytes(plugin: StoredPlugin, directory: Path) -> int:
    """The size of a directory of a plugin; 0, and a line in the log, if it cannot be measured in time."""

    def measure() -> int:
        return call_bounded(lambda: tree_bytes(directory), _MEASURE, f"measure {directory}", owner=plugin.id)

    try:
        return await run_blocking(measure)
    except (OSError, errors.Unavailable) as error:
        log.warning("cannot measure %s of plugin %s: %s", directory, plugin.name, error)
        return 0


async def _blobs_of(storage: "Storage", plugin: StoredPlugin) -> set[str]:
    """The digests of a plugin's package; none if its record in containerd is missing or damaged."""
    try:
        manifest = await read_manifest(storage, (await storage.get_image(plugin.package.image)).target)
    except (errors.NotFound, errors.Invalid) as error:
        log.warning("cannot read the package of plugin %s: %s", plugin.name, error)
        return set()
    return {manifest.descriptor.digest, *(each.digest for each in manifest.blobs)}
