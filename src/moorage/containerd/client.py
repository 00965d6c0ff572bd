"""One method for each of containerd's calls that we use, with values in and out and no policy between.

``connect`` makes a client. Every method raises by kind (``moorage.errors``): NotFound, Conflict (exists, or in another
state), Invalid, Unsupported, Unavailable (cannot be reached, did not answer in time), and MoorageError if containerd
returns a text but no kind, as it does for most failures of a runtime.

Source: containerd's API (``api/services/*/v1`` of containerd 1.6), field numbers unchanged up to 2.x.
"""

from __future__ import annotations  # gRPC is named in them, and is imported by ``connect``

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from moorage._lib.task_groups import require_asyncio
from moorage._lib.threads import run_blocking
from moorage.containerd import _proto, types
from moorage.containerd.calls.containers import ContainerCalls
from moorage.containerd.calls.events import EventCalls
from moorage.containerd.calls.pulls import PullCalls
from moorage.containerd.calls.system import SystemCalls
from moorage.containerd.calls.tasks import TaskCalls
from moorage.containerd.identifiers import check_identifier
from moorage.containerd.integrity import Verification
from moorage.containerd.storage import Storage
from moorage.timeouts import DEFAULT, ClientTimeouts

if TYPE_CHECKING:
    from moorage.containerd._rpc import GrpcConnection

__all__ = ("Client", "connect")


class Client(ContainerCalls, TaskCalls, EventCalls, PullCalls, SystemCalls):
    """The calls of one containerd, in one namespace. Made by ``connect``.

    ``connection`` is shared with its storage and closed by ``connect``; ``namespace`` is containerd's; ``timeouts``
    bound the calls.
    """

    def __init__(self, connection: GrpcConnection, namespace: str, timeouts: ClientTimeouts = DEFAULT) -> None:
        self.namespace = self._namespace = check_identifier(namespace, "namespace")
        self._connection = connection
        self._timeouts = timeouts
        self._verification = Verification(self._find_content)

    @property
    def address(self) -> str:
        """Path of containerd's socket."""
        return self._connection.address

    @property
    def storage(self) -> Storage:
        """Content, images, snapshots and leases of the same namespace."""
        return Storage(self._connection, self.namespace, self._timeouts, self._verification)

    async def _find_content(self) -> str:
        """The directory of containerd's content store; empty if containerd does not report it."""
        found = await self.plugins("type==io.containerd.content.v1")
        return next((root for each in found if (root := each.exports.get("root"))), "")


@asynccontextmanager
async def connect(
    address: str, namespace: str, timeouts: ClientTimeouts = DEFAULT, observer: types.CallObserver | None = None
) -> AsyncIterator[Client]:
    """A client of the containerd that listens on the unix socket ``address``, until the block ends.

    Nothing is sent yet: the first call fails if containerd is unavailable, and a call after that connects again.
    ``observer`` is called after every call with one answer, with its method ("Tasks.Start"), its duration in seconds,
    and its failure or None; it is not called after a call that was cancelled.

    Raises:
        errors.Unsupported: the event loop is not one of asyncio (trio)
    """
    require_asyncio("connect to containerd")
    connection_type = await run_blocking(_load_grpc)
    connection = connection_type(address.removeprefix("unix://"), observer)
    try:
        yield Client(connection, namespace, timeouts)
    finally:
        connection.close()


def _load_grpc() -> type[GrpcConnection]:
    """Import gRPC and load containerd's messages, which takes as long as the rest of the client: once, in a thread."""
    from moorage.containerd._rpc import GrpcConnection

    _proto.load()
    return GrpcConnection
