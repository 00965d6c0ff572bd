"""Where packages are read from, as a protocol, and how operations report their progress."""

from collections.abc import AsyncGenerator
from typing import Protocol

from moorage.containerd.images.progress import ProgressStep as ProgressStep
from moorage.containerd.images.progress import ReportProgress as ReportProgress
from moorage.containerd.images.progress import ignore_progress as ignore_progress
from moorage.oci.manifest import RawManifest
from moorage.plugins import Reference

__all__ = ("ProgressStep", "ReportProgress", "Source", "ignore_progress")


class Source(Protocol):
    """A repository of a registry (``Registry``), or an archive: manifests and blobs, addressed by digest.

    All methods raise: NotFound for what is missing; Invalid for other bytes than were requested; any other failure by
    its kind, with the name of what was read.
    """

    async def resolve(self, reference: Reference) -> RawManifest:
        """The manifest or index that a reference refers to. Raises: errors.Unsupported for another document."""

    async def read_manifest(self, target: str) -> RawManifest:
        """The manifest or index with this digest, verified. Raises: errors.Unsupported for another document."""

    async def find_manifest(self, target: str) -> RawManifest | None:
        """As ``read_manifest``, also by a tag; None if there is none."""

    async def read_referrers(self, digest: str, artifact_type: str) -> bytes | None:
        """The index of artifacts that refer to a manifest: JSON of bounded size that has not been checked.

        None if the source has no such list; it may then be under the fallback tag of the referrers API.
        """

    def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on; to be closed if it is not read to the end.

        At most ``size_bytes`` are returned. Who stores them checks the digest again.
        """
