"""Pushes a package from containerd to a registry: the blobs that it does not have, then the manifest, unchanged."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import encoded
from moorage.oci.manifest import Manifest
from moorage.packages.content import blob_reader
from moorage.packages.source import ProgressStep, ReportProgress
from moorage.plugins import Reference
from moorage.registry.registry import Registry

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("SOURCE_LABEL", "push_package")

log = logging.getLogger(__name__)

SOURCE_LABEL = "containerd.io/distribution.source."
"""Prefix of the label of a blob that lists, after a registry's host, the repositories there that have it."""

_CONCURRENT = 3  # uploads of one push
_LISTED_REPOSITORIES = 8  # repositories of a blob
_MOUNT_ATTEMPTS = 3  # repositories to mount a blob from, before it is uploaded
_REPORT_INTERVAL = 0.1  # seconds between two reports on one blob


async def push_package(
    storage: "Storage", registry: Registry, manifest: Manifest, target: Reference, report: ReportProgress
) -> None:
    """Push a package to ``target``, whose repository ``registry`` is open for; existing blobs are not uploaded again.

    Raises:
        errors.NotFound: containerd does not have a blob any more
        errors.MoorageError: what the registry's client raises
    """
    push = _Push(storage, registry, target, report)
    for blob in manifest.blobs:
        push.report(blob, "Preparing")
    await push.push_blobs(manifest.blobs)
    await registry.push_manifest(target.with_default_tag().tag or "", manifest.data, manifest.descriptor.media_type)


class _Push:
    def __init__(self, storage: "Storage", registry: Registry, target: Reference, report: ReportProgress) -> None:
        self._storage = storage
        self._registry = registry
        self._target = target
        self._report_progress = report
        self._slots = anyio.CapacityLimiter(_CONCURRENT)
        self._failure: errors.MoorageError | None = None

    def report(self, blob: Descriptor, status: str, current: int = 0, total: int = 0) -> None:
        """Report the progress of a blob."""
        self._report_progress(ProgressStep(status, _short(blob.digest), current, total, is_of_blob=True))

    async def push_blobs(self, blobs: tuple[Descriptor, ...]) -> None:
        """Push every blob, some concurrently; the first failure cancels the others. Raises: it."""

        async def one(blob: Descriptor, scope: anyio.CancelScope) -> None:
            try:
                async with self._slots:
                    await self._blob(blob)
            except errors.MoorageError as error:
                self._failure = self._failure or error
                scope.cancel()

        async with anyio.create_task_group() as tasks:
            for blob in blobs:
                tasks.start_soon(one, blob, tasks.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _blob(self, blob: Descriptor) -> None:
        self.report(blob, "Waiting")
        if await self._registry.may_omit_blob(blob.digest):
            self.report(blob, "Already exists")
        elif source := await self._mount(blob):
            self.report(blob, f"Mounted from {source}")
        else:
            await self._registry.push_blob(blob.digest, blob.size_bytes, lambda: self._read(blob))
            self.report(blob, "Upload complete")
        await self._add_repository(blob)

    async def _mount(self, blob: Descriptor) -> str:
        """The repository of the same registry that the blob was mounted from; empty if there is none."""
        try:
            known = [each for each in await self._repositories(blob) if each != self._target.path]
        except errors.MoorageError as error:  # a mount only saves work
            log.info("cannot read which repositories have %s: %s", blob.digest, error)
            known = []
        for path in known[-_MOUNT_ATTEMPTS:]:
            if await self._registry.mount_blob(blob.digest, path):
                return path
        return ""

    async def _read(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        sent, reported_at = 0, -_REPORT_INTERVAL
        async with aclosing(blob_reader(self._storage, blob)()) as pieces:
            async for piece in pieces:
                yield piece
                sent += len(piece)
                if (now := anyio.current_time()) - reported_at >= _REPORT_INTERVAL:
                    reported_at = now
                    self.report(blob, "Uploading", sent, blob.size_bytes)

    @property
    def _label(self) -> str:
        return f"{SOURCE_LABEL}{self._target.host}"

    async def _repositories(self, blob: Descriptor) -> list[str]:
        """The repositories of this registry that were seen to have the blob."""
        labels = (await self._storage.get_content(blob.digest)).labels
        return [each for each in labels.get(self._label, "").split(",") if each]

    async def _add_repository(self, blob: Descriptor) -> None:
        """Label the blob with the repository, as containerd's client does. It only saves work: failures are logged."""
        try:
            known = [each for each in await self._repositories(blob) if each != self._target.path]
            paths = [*known, self._target.path][-_LISTED_REPOSITORIES:]
            await self._storage.set_content_labels(blob.digest, {self._label: ",".join(paths)})
        except errors.MoorageError as error:
            log.info("cannot label %s with its repository: %s", blob.digest, error)


def _short(digest: str) -> str:
    return encoded(digest)[:12]
