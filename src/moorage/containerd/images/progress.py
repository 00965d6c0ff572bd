"""How operations on images and packages report their progress."""

from collections.abc import Callable

from msgspec import Struct

from moorage.oci.descriptor import Descriptor
from moorage.oci.digest import encoded

__all__ = ("ProgressStep", "ReportProgress", "ignore_progress", "step_of_blob")


class ProgressStep(Struct, frozen=True):
    """One step of an operation on an image or a package, with the texts of Docker's progress streams.

    ``total`` are the bytes of the blob, 0 where they do not matter; ``is_of_blob``: whether it is about one blob.
    """

    status: str
    """``Downloading``, ``Pull complete``; with an id it is about a blob."""
    id: str = ""
    """The tag, or the first 12 digits of a blob's digest; empty for the operation as a whole."""
    current: int = 0
    """Bytes so far, if ``total`` is more than 0."""
    total: int = 0
    is_of_blob: bool = False


ReportProgress = Callable[[ProgressStep], None]
"""Called for each step; never waits."""


def ignore_progress(progress: ProgressStep) -> None:
    """Reports nothing."""


def step_of_blob(status: str, blob: Descriptor, current: int = 0) -> ProgressStep:
    """A step of one blob, of which ``current`` bytes were downloaded."""
    total = blob.size_bytes if status == "Downloading" else 0
    return ProgressStep(status, encoded(blob.digest)[:12], current, total, is_of_blob=True)
