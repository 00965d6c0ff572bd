"""What the calls of content, images, snapshots and leases share."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from typing import TYPE_CHECKING, Self

from moorage.containerd.calls.base import ServiceCalls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from moorage.containerd._rpc import GrpcConnection
    from moorage.containerd.integrity import Verification
    from moorage.timeouts import ClientTimeouts

__all__ = ("StorageCalls",)


class StorageCalls(ServiceCalls):
    """Calls whose objects a lease can reference, and that carry marks of their creator."""

    def __init__(
        self,
        connection: GrpcConnection,
        namespace: str,
        timeouts: ClientTimeouts,
        verification: Verification,
        *,
        lease: str = "",
        marks: Mapping[str, str] | None = None,
        ref_prefix: str = "",
    ) -> None:
        """``verification`` is shared by all users of one connection; ``marks`` are labels of all that is created, and
        the refs of all uploads start with ``ref_prefix``.
        """
        self._connection = connection
        self._namespace = namespace
        self._timeouts = timeouts
        self._verification = verification
        self._lease = lease
        self._marks = dict(marks or {})
        self._ref_prefix = ref_prefix

    def under(self, lease: str) -> Self:
        """The same storage; this lease references what is created through it."""
        return self._copy(lease, self._marks, self._ref_prefix)

    def marked(self, marks: Mapping[str, str], ref_prefix: str) -> Self:
        """The same storage; leases, images, snapshots and content that are created through it have these labels, and
        the refs of uploads, which have no labels, this prefix.
        """
        return self._copy(self._lease, marks, ref_prefix)

    def _copy(self, lease: str, marks: Mapping[str, str], ref_prefix: str) -> Self:
        return type(self)(
            self._connection,
            self._namespace,
            self._timeouts,
            self._verification,
            lease=lease,
            marks=marks,
            ref_prefix=ref_prefix,
        )

    def _full_ref(self, ref: str) -> str:
        return ref if ref.startswith(self._ref_prefix) else self._ref_prefix + ref
