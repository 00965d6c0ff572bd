"""A package from containerd into a registry: blobs that it lacks first, the manifest last, byte for byte."""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage.containerd.types import Descriptor
from moorage.distribution.registry import Registry
from moorage.distribution.source import Progress, Report
from moorage.distribution.stored import Contents, bytes_of
from moorage.plugins import Reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("SOURCE_LABEL", "push_package")

log = logging.getLogger(__name__)

SOURCE_LABEL = "containerd.io/distribution.source."
"""Label of a blob, with a registry's host: in which repositories there it is, with commas between them."""

_AT_ONCE = 3
_REMEMBERED = 8  # repositories of a blob
_MOUNTS = 3  # repositories that are asked for a blob before it is sent
_PAUSE = 0.1  # seconds between two words on one blob


async def push_package(
    storage: "Storage", registry: Registry, contents: Contents, target: Reference, report: Report
) -> None:
    """Bring a package to ``target``, whose repository ``registry`` is open for; what it has is not sent again.

    Raises: what the registry's client raises; NotFound where a blob is gone.
    """
    push = _Push(storage, registry, target, report)
    for blob in contents.blobs:
        push.tell(blob, "Preparing")
    await push.all_of(contents.blobs)
    await registry.push_manifest(target.with_default_tag().tag or "", contents.data, contents.manifest.media_type)


class _Push:
    def __init__(self, storage: "Storage", registry: Registry, target: Reference, report: Report) -> None:
        self._storage = storage
        self._registry = registry
        self._target = target
        self._report = report
        self._places = anyio.CapacityLimiter(_AT_ONCE)
        self._failure: errors.MoorageError | None = None

    def tell(self, blob: Descriptor, status: str, current: int = 0, total: int = 0) -> None:
        """Say what happens to a blob."""
        self._report(Progress(status, _short(blob.digest), current, total, is_of_blob=True))

    async def all_of(self, blobs: tuple[Descriptor, ...]) -> None:
        """Every blob, some at once; the first failure ends all. Raises: it."""

        async def one(blob: Descriptor, scope: anyio.CancelScope) -> None:
            try:
                async with self._places:
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
        self.tell(blob, "Waiting")
        if await self._registry.may_omit_blob(blob.digest):
            self.tell(blob, "Already exists")
        elif source := await self._mount(blob):
            self.tell(blob, f"Mounted from {source}")
        else:
            await self._registry.push_blob(blob.digest, blob.size_bytes, lambda: self._sent(blob))
            self.tell(blob, "Upload complete")
        await self._remember(blob)

    async def _mount(self, blob: Descriptor) -> str:
        """The repository of the same registry that gave the blob; empty where none does."""
        try:
            known = [each for each in await self._known(blob) if each != self._target.path]
        except errors.MoorageError as error:  # a mount only saves work
            log.info("cannot tell where %s is: %s", blob.digest, error)
            known = []
        for path in known[-_MOUNTS:]:
            if await self._registry.mount_blob(blob.digest, path):
                return path
        return ""

    async def _sent(self, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        sent, told_at = 0, -_PAUSE
        async with aclosing(bytes_of(self._storage, blob)()) as pieces:
            async for piece in pieces:
                yield piece
                sent += len(piece)
                if (now := anyio.current_time()) - told_at >= _PAUSE:
                    told_at = now
                    self.tell(blob, "Uploading", sent, blob.size_bytes)

    @property
    def _label(self) -> str:
        return f"{SOURCE_LABEL}{self._target.host}"

    async def _known(self, blob: Descriptor) -> list[str]:
        """The repositories of this registry that had the blob when we last saw them."""
        labels = (await self._storage.get_content(blob.digest)).labels
        return [each for each in labels.get(self._label, "").split(",") if each]

    async def _remember(self, blob: Descriptor) -> None:
        """Note where the blob is, as containerd's own client does. It only saves work, so a failure is only logged."""
        try:
            known = [each for each in await self._known(blob) if each != self._target.path]
            paths = [*known, self._target.path][-_REMEMBERED:]
            await self._storage.set_content_labels(blob.digest, {self._label: ",".join(paths)})
        except errors.MoorageError as error:
            log.info("cannot note where %s is: %s", blob.digest, error)


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]
