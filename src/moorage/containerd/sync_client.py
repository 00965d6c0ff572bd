"""The client of containerd for programs without an event loop: the same names and values, and each call blocks.

    with sync_client.connect("/run/containerd/containerd.sock", "default") as client:
        print(client.version())

The calls run in an event loop of one thread, which ``connect`` starts and stops. Every thread may use the client. The
methods are made from those of the asynchronous classes; ``sync_client.pyi``, which ``scripts/diagrams`` writes, has
their types. A stream is a context with a plain iterator, and what is written is a plain iterator of bytes.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial, wraps
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from moorage.containerd import client as asynchronous
from moorage.containerd import storage as asynchronous_storage
from moorage.containerd.events import subscribe as subscribe_asynchronously
from moorage.containerd.types import CallObserver, Envelope
from moorage.timeouts import DEFAULT, ClientTimeouts

__all__ = ("BlockingClient", "BlockingStorage", "connect", "subscribe")

Item = TypeVar("Item")
Class = TypeVar("Class", bound=type)


def _mirror(original: type) -> Callable[[Class], Class]:
    """Give a class a blocking method for each public method of the original that it does not define itself."""

    def complete(mirrored: Class) -> Class:
        for name, function in inspect.getmembers(original, inspect.isfunction):
            if name.startswith("_") or name in vars(mirrored):
                continue
            if inspect.iscoroutinefunction(function):
                setattr(mirrored, name, _blocking_call(name, function))
            elif inspect.isasyncgenfunction(inspect.unwrap(function)):
                setattr(mirrored, name, _blocking_stream(name, function))
        return mirrored

    return complete


def _blocking_call(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(self: "_Mirrored", *arguments: Any, **options: Any) -> Any:
        return self._portal.call(partial(getattr(self._target, name), *arguments, **options))

    return call


def _blocking_stream(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def stream(self: "_Mirrored", *arguments: Any, **options: Any) -> AbstractContextManager[Iterator[Any]]:
        return _iterated(self._portal, getattr(self._target, name)(*arguments, **options))

    return stream


@contextmanager
def _iterated(portal: BlockingPortal, opened: Any) -> Iterator[Iterator[Any]]:
    with portal.wrap_async_context_manager(opened) as items:
        yield _items(portal, items)


def _items(portal: BlockingPortal, items: AsyncIterator[Item]) -> Iterator[Item]:
    async def following() -> list[Item]:
        return [item async for item in _first(items)]

    while found := portal.call(following):
        yield found[0]


async def _first(items: AsyncIterator[Item]) -> AsyncIterator[Item]:
    try:
        item = await anext(items)
    except StopAsyncIteration:
        return
    yield item


class _Mirrored:
    def __init__(self, portal: BlockingPortal, target: Any) -> None:
        self._portal = portal
        self._target = target


@_mirror(asynchronous_storage.Storage)
class BlockingStorage(_Mirrored):
    """The storage of one containerd, in one namespace. Made by ``Client.storage``."""

    def under(self, lease: str) -> "BlockingStorage":
        """The same storage; this lease references what is created through it."""
        return BlockingStorage(self._portal, self._target.under(lease))

    def marked(self, marks: Any, ref_prefix: str) -> "BlockingStorage":
        """The same storage; what is created through it has these labels, and refs of uploads this prefix."""
        return BlockingStorage(self._portal, self._target.marked(marks, ref_prefix))

    def write_content(self, ref: str, chunks_from: Callable[[int], Iterator[bytes]], **options: Any) -> str:
        """Write a blob and return its digest; ``chunks_from(offset)`` yields its bytes from there on."""

        async def chunks(offset: int) -> AsyncIterator[bytes]:
            for chunk in chunks_from(offset):  # in the thread of the loop: what it reads should not wait for long
                yield chunk

        found: str = self._portal.call(partial(self._target.write_content, ref, chunks, **options))
        return found


@_mirror(asynchronous.Client)
class BlockingClient(_Mirrored):
    """The calls of one containerd, in one namespace. Made by ``connect``."""

    @property
    def address(self) -> str:
        """Path of containerd's socket."""
        found: str = self._target.address
        return found

    @property
    def namespace(self) -> str:
        """The namespace of the calls."""
        found: str = self._target.namespace
        return found

    @property
    def storage(self) -> BlockingStorage:
        """Content, images, snapshots and leases of the same namespace."""
        return BlockingStorage(self._portal, self._target.storage)


@contextmanager
def connect(
    address: str, namespace: str, timeouts: ClientTimeouts = DEFAULT, observer: CallObserver | None = None
) -> Iterator[BlockingClient]:
    """A client of the containerd that listens on the unix socket ``address``, until the block ends.

    ``observer`` is called after every call, in the thread of the loop.
    """
    with start_blocking_portal("asyncio") as portal:
        opened = asynchronous.connect(address, namespace, timeouts, observer)
        with portal.wrap_async_context_manager(opened) as target:
            yield BlockingClient(portal, target)


@contextmanager
def subscribe(
    client: BlockingClient, topics: str = "^/tasks/", *, timeouts: ClientTimeouts = DEFAULT
) -> Iterator[Iterator[Envelope]]:
    """Events of the namespace whose topic matches an expression, from the moment of entering.

    Raises:
        errors.Unavailable: containerd stops or does not answer; from entering and from the iterator
    """

    @asynccontextmanager
    async def opened() -> AsyncIterator[AsyncIterator[Envelope]]:
        async with subscribe_asynchronously(client._target, topics, timeouts=timeouts) as envelopes:
            yield envelopes

    with _iterated(client._portal, opened()) as items:
        yield items
