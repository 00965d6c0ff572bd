"""What an engine's containerd stores, queried from outside."""

from dataclasses import dataclass

import anyio

from moorage.containerd import connect
from support.engines import EngineProcess
from support.foreground import wait_until


@dataclass(frozen=True)
class Contents:
    """Names of everything that there is."""

    images: frozenset[str]
    blobs: frozenset[str]
    ingests: frozenset[str]
    snapshots: frozenset[str]
    leases: frozenset[str]
    """But for the one that says whose the namespace is."""


def contents_of(house: EngineProcess) -> Contents:
    """What containerd stores for an engine now."""

    async def read() -> Contents:
        async with connect(str(house.exec_root / "containerd/c.sock"), house.namespace) as client:
            storage = client.storage
            return Contents(
                frozenset(each.name for each in await storage.list_images()),
                frozenset(each.digest for each in await storage.list_content()),
                frozenset(each.ref for each in await storage.list_ingests()),
                frozenset(each.name for each in await storage.list_snapshots("overlayfs")),
                frozenset(await storage.list_leases()) - {"moorage.owner"},
            )

    return anyio.run(read)


def wait_for(house: EngineProcess, what: Contents) -> None:
    """Return when containerd stores exactly this; collections run after the call that requests them."""
    last: list[Contents] = []

    def is_so() -> bool:
        last[:] = [contents_of(house)]
        return last[0] == what

    try:
        wait_until(is_so, "containerd's storage as before")
    except AssertionError as error:
        raise AssertionError(f"{error}: it has {last[0]} instead of {what}") from None
