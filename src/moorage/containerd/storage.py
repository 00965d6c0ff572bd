"""containerd's storage: content, images, snapshots, unpacking, leases. One method for each call, no policy.

The next collection removes whatever has no reference: work under a lease (``under``) until an image record references
the result. Collections run by themselves, or now by ``collect``.

Source: containerd's API (``api/services/{content,images,snapshots,diff,leases}/v1`` of containerd 1.6).
"""

from moorage.containerd.calls.content import ContentCalls
from moorage.containerd.calls.images import ImageCalls
from moorage.containerd.calls.snapshots import SnapshotCalls

__all__ = ("Storage",)


class Storage(ContentCalls, ImageCalls, SnapshotCalls):
    """The storage of one containerd, in one namespace. Made by ``Client.storage``."""
