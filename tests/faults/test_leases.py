"""A lease whose creation or use is cancelled is deleted: its undo is registered before it is created."""

import ast
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from moorage.containerd import Client, Storage
from moorage.packages.snapshots import choose_snapshotter
from support.workspace import Workspace

SOURCE = Path(__file__).resolve().parents[2] / "src/moorage"


class Cancelled(Storage):
    """The real storage, whose user is cancelled when containerd has created a lease, and before it is known here."""

    async def create_lease(self, id: str, *, expires_at: datetime | None = None, labels: Any = None) -> None:
        await super().create_lease(id, expires_at=expires_at, labels=labels)
        scope.cancel()
        await anyio.lowlevel.checkpoint()


class CancelledLater(Storage):
    """The same, but cancelled before the next call."""

    async def create_lease(self, id: str, *, expires_at: datetime | None = None, labels: Any = None) -> None:
        await super().create_lease(id, expires_at=expires_at, labels=labels)
        scope.cancel()


scope: anyio.CancelScope


@pytest.fixture
async def client(workspace: Workspace) -> AsyncIterator[Client]:
    async with workspace.client() as client:
        yield client


async def collect(storage: Storage, scratch: Path) -> None:
    await storage.collect()


async def choose(storage: Storage, scratch: Path) -> None:
    await choose_snapshotter(storage, scratch)


@pytest.mark.real
@pytest.mark.anyio
@pytest.mark.parametrize("kind", [Cancelled, CancelledLater])
@pytest.mark.parametrize("use", [collect, choose])
async def test_i21_a_cancelled_creation_leaves_no_lease(
    client: Client, tmp_path: Path, use: Callable[[Storage, Path], Awaitable[None]], kind: type[Storage]
) -> None:
    global scope
    storage = kind(client._connection, client.namespace, client._timeouts, client._verification)
    with anyio.CancelScope() as scope:
        await use(storage, tmp_path)
        await anyio.lowlevel.checkpoint()  # where all that followed was shielded
    assert scope.cancelled_caught
    assert await client.storage.list_leases() == {}


def creations(tree: ast.AST, undone: bool = False) -> list[bool]:
    """For each creation of a lease, whether it is inside a ``try`` that undoes it however it ends."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "create_lease":
            found.append(undone)
        if isinstance(node, ast.Try):
            catches = any(each.type is not None and ast.unparse(each.type) == "BaseException" for each in node.handlers)
            for each in node.body:
                found += creations(ast.Module([each], []), undone or bool(node.finalbody) or catches)
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                found += creations(part, undone)
        else:
            found += creations(node, undone)
    return found


@pytest.mark.quick
def test_i21_the_undo_of_a_lease_is_registered_before_its_creation() -> None:
    found = {
        str(path.relative_to(SOURCE)): creations(ast.parse(path.read_text()))
        for path in SOURCE.rglob("*.py")
        if "create_lease(" in path.read_text()
    }
    left = {path for path, undone in found.items() if not all(undone)}
    assert left == {"engine/restore.py"}, "the lease of an engine stays: the next start of the same engine has it"
    assert sum(map(len, found.values())) >= 7
