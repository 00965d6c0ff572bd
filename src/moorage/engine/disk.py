"""What plugins take of the disk, and the end of what nothing refers to any more."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from moorage import errors
from moorage._lib.bounded import call_bounded
from moorage._lib.threads import run_blocking
from moorage.containerd.types import Content, Ingest, Snapshot, SnapshotKind
from moorage.distribution.stored import read_contents
from moorage.engine.machinery import Machinery
from moorage.engine.plugin import Plugin
from moorage.engine.usage import DiskUsage, PluginUsage, Pruned
from moorage.engine.work import Work
from moorage.host.beneath import remove_tree_now, tree_bytes

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("measure_disk", "prune")

log = logging.getLogger(__name__)

_CONTENT_REF = "containerd.io/gc.ref.content."
_SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."
_MEASURE = 60.0  # seconds for one directory; one with more files than can be counted in that is left out
_SNAPSHOTTERS = ("overlayfs", "native")  # those that choose_snapshotter chooses between


async def measure_disk(work: Work) -> DiskUsage:
    """What everything takes. Raises: Unavailable while containerd is away."""
    storage = (await work.await_machinery()).storage
    plugins = work.registry.all()
    look = await _look(storage)
    blobs = {plugin.id: await _blobs_of(storage, plugin) for plugin in plugins}
    layers = {plugin.id: look.layers_of(plugin.record.snapshotter, plugin.record.snapshot) for plugin in plugins}
    found: list[PluginUsage] = []
    for plugin in plugins:
        others = [each for each in plugins if each is not plugin]
        theirs = {digest for each in others for digest in blobs[each.id]}
        below = {key for each in others for key in layers[each.id]}
        found.append(
            PluginUsage(
                id=plugin.id,
                name=plugin.name,
                package_bytes=look.size(blobs[plugin.id]),
                shared_package_bytes=look.size(blobs[plugin.id] & theirs),
                layers_bytes=look.taken(layers[plugin.id]),
                shared_layers_bytes=look.taken(layers[plugin.id] & below),
                written_bytes=look.taken({(plugin.record.snapshotter, plugin.record.snapshot)}),
                data_bytes=await _bytes_below(plugin, plugin.places.propagated),
                logs_bytes=await _bytes_below(plugin, plugin.log.directory),
            )
        )
    unreferenced = await look.unreferenced(storage)
    return look.sum_up(found, await storage.list_ingests(), unreferenced)


async def prune(work: Work, sweep: Callable[[Machinery], Awaitable[None]]) -> Pruned:
    """Remove left uploads, content and layers that nothing refers to, and logs of plugins that are gone.

    While something is made or fetched its uploads cannot be told from left ones, so all of them stay. ``sweep`` is
    awaited where nothing is.

    Raises: Unavailable while containerd is away.
    """
    machinery = await work.await_machinery()
    before = await measure_disk(work)
    async with machinery.gate:
        under_way = len(machinery.leases)
        if not under_way:
            await sweep(machinery)
        await machinery.storage.collect()
    known = {plugin.id for plugin in work.registry.all()}
    logs = await run_blocking(lambda: _drop_logs(work.store.root / "logs", known, work.store.is_free))
    after = await measure_disk(work)
    freed = before.content_bytes + before.layers_bytes + before.written_bytes + before.uploads_bytes
    left = after.content_bytes + after.layers_bytes + after.written_bytes + after.uploads_bytes
    return Pruned(max(0, freed - left) + logs, max(0, before.uploads - after.uploads), under_way)


class _Look:
    """What containerd has, at one instant."""

    def __init__(self, content: Iterable[Content], snapshots: Mapping[tuple[str, str], Snapshot]) -> None:
        self.content = {each.digest: each for each in content}
        self.snapshots = snapshots
        self.usage: dict[tuple[str, str], int] = {}

    def size(self, digests: Iterable[str]) -> int:
        """Bytes of blobs."""
        return sum(self.content[digest].size_bytes for digest in digests if digest in self.content)

    def taken(self, keys: Iterable[tuple[str, str]]) -> int:
        """Bytes of snapshots, each without its parents."""
        return sum(self.usage.get(key, 0) for key in keys)

    def layers_of(self, snapshotter: str, key: str) -> set[tuple[str, str]]:
        """The committed snapshots that this one stands on."""
        found: set[tuple[str, str]] = set()
        snapshot = self.snapshots.get((snapshotter, key))
        while snapshot is not None and snapshot.parent and (snapshotter, snapshot.parent) not in found:
            found.add((snapshotter, snapshot.parent))
            snapshot = self.snapshots.get((snapshotter, snapshot.parent))
        return found

    async def unreferenced(self, storage: "Storage") -> int:
        """Bytes of blobs and snapshots that no image record leads to."""
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
        return self.size(set(self.content) - blobs) + self.taken(set(self.snapshots) - keys)

    def _snapshots_of(self, labels: Mapping[str, str]) -> set[tuple[str, str]]:
        """What labels hold of snapshots, with all below it."""
        found: set[tuple[str, str]] = set()
        for name, key in labels.items():
            if name.startswith(_SNAPSHOT_REF):
                snapshotter = name.removeprefix(_SNAPSHOT_REF).partition("/")[0]
                found |= {(snapshotter, key)} | self.layers_of(snapshotter, key)
        return found

    def sum_up(self, plugins: Sequence[PluginUsage], uploads: Sequence[Ingest], unreferenced: int) -> DiskUsage:
        """The whole."""
        committed = {key for key, each in self.snapshots.items() if each.kind is SnapshotKind.COMMITTED}
        return DiskUsage(
            plugins=tuple(plugins),
            content_bytes=self.size(self.content),
            layers_bytes=self.taken(committed),
            written_bytes=self.taken(set(self.snapshots) - committed),
            uploads=len(uploads),
            uploads_bytes=sum(each.offset_bytes for each in uploads),
            unreferenced_bytes=unreferenced,
        )


async def _look(storage: "Storage") -> _Look:
    snapshots: dict[tuple[str, str], Snapshot] = {}
    for snapshotter in _SNAPSHOTTERS:
        with suppress(errors.NotFound, errors.Invalid):  # not in this containerd
            snapshots |= {(snapshotter, each.name): each for each in await storage.list_snapshots(snapshotter)}
    look = _Look(await storage.list_content(), snapshots)
    for snapshotter, key in snapshots:
        try:
            look.usage[snapshotter, key] = (await storage.snapshot_usage(snapshotter, key)).size_bytes
        except errors.Unavailable:
            raise
        except errors.MoorageError as error:  # gone since, or containerd cannot measure it: others can be
            log.debug("cannot measure snapshot %s: %s", key, error)
    return look


async def _bytes_below(plugin: Plugin, directory: Path) -> int:
    """What a directory of a plugin takes; 0, and a line in the log, where that cannot be found out in time."""

    def measure() -> int:
        return call_bounded(lambda: tree_bytes(directory), _MEASURE, f"measure {directory}", owner=plugin.id)

    try:
        return await run_blocking(measure)
    except (OSError, errors.Unavailable) as error:
        log.warning("cannot measure %s of plugin %s: %s", directory, plugin.name, error)
        return 0


async def _blobs_of(storage: "Storage", plugin: Plugin) -> set[str]:
    """The blobs of a plugin's package; none for one whose record in containerd is gone or damaged."""
    try:
        contents = await read_contents(storage, (await storage.get_image(plugin.record.image)).target)
    except (errors.NotFound, errors.Invalid) as error:
        log.warning("cannot look at the package of plugin %s: %s", plugin.name, error)
        return set()
    return {contents.manifest.digest, *(each.digest for each in contents.blobs)}


def _drop_logs(directory: Path, known: set[str], is_free: Callable[[str], bool]) -> int:
    """Remove logs of plugins that are not there; the bytes (blocking)."""
    freed = 0
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name not in known and is_free(path.name):
            try:
                size = tree_bytes(path)
                remove_tree_now(path)
            except OSError as error:
                log.warning("cannot remove the logs in %s: %s", path, error)
            else:
                freed += size
    return freed
