"""Where packages come from, as those see it who take one in; and how they tell what they are doing."""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from msgspec import Struct

from moorage.distribution._check import Manifest
from moorage.plugins import Reference

__all__ = ("Progress", "Report", "Source", "quiet")


class Source(Protocol):
    """A repository of a registry (``Registry``), or an archive: manifests and blobs, addressed by digest.

    All methods raise: NotFound for what is not there; Invalid for other bytes than were asked for; what else stands in
    the way, by kind, with the name of what was read.
    """

    async def resolve(self, reference: Reference) -> Manifest:
        """What a reference means: a manifest or an index. Raises: Unsupported for another thing."""

    async def read_manifest(self, target: str) -> Manifest:
        """The manifest or index with this digest, its bytes checked. Raises: Unsupported for another thing."""

    async def find_manifest(self, target: str) -> Manifest | None:
        """As ``read_manifest``, also with a tag; None where there is none."""

    async def read_referrers(self, digest: str, artifact_type: str) -> bytes | None:
        """The index of artifacts that refer to a manifest: JSON of bounded size that nobody has checked.

        None where the source has no such list, so that it may be under the tag that stands in for it.
        """

    def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on; to be closed where it is left early.

        Not more than ``size_bytes`` come, whatever is there. Whoever stores them checks the digest once more.
        """


class Progress(Struct, frozen=True):
    """One step of an operation on a package, in the words of Docker's progress streams."""

    status: str
    """``Downloading``, ``Pull complete``; with an id it is of a blob."""
    id: str = ""
    """The tag, or the first 12 digits of a blob's digest; empty for the operation as a whole."""
    current: int = 0
    """Bytes so far, where ``total`` is more than 0."""
    total: int = 0
    is_of_blob: bool = False


Report = Callable[[Progress], None]
"""Takes each step as it is done; never waits."""


def quiet(progress: Progress) -> None:
    """A report for nobody."""
