"""A registry that a test leads astray, beside tests that are not asynchronous, with a package in it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from anyio.from_thread import start_blocking_portal

from support.fault_registry import Answer, FaultRegistry, sends, serve_faults
from support.packages import Made

__all__ = ("fault_registry", "offer", "requests_for")


@contextmanager
def fault_registry() -> Iterator[FaultRegistry]:
    """In a thread of its own, until the end of the block."""
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(serve_faults()) as registry,
    ):
        yield registry


def offer(
    registry: FaultRegistry,
    made: Made,
    path: str = "t/p",
    tag: str = "latest",
    *,
    instead: Mapping[str, Answer] | None = None,
) -> str:
    """Serve a package; ``instead`` are other answers for ``config``, ``layer0``, ... Returns the reference."""
    manifest = sends(made.manifest, made.media_type)
    registry.answers[("GET", f"{path}/manifests/{tag}")] = manifest
    registry.answers[("GET", f"{path}/manifests/{made.digest}")] = manifest
    names = {"config": made.config, **{f"layer{index}": each for index, each in enumerate(made.layers)}}
    for name, blob in names.items():
        digest = blob.claims.get("digest", blob.digest)
        registry.answers[("GET", f"{path}/blobs/{digest}")] = (instead or {}).get(name) or sends(blob.data)
    return f"{registry.host}/{path}:{tag}"


def requests_for(registry: FaultRegistry, part: str) -> int:
    """How many requests there were for what has this in its path."""
    return sum(part in each.path for each in registry.seen)
