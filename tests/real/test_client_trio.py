"""A program under trio: everything that needs an event loop of asyncio refuses by kind before it changes anything."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from moorage import errors, open_executor
from moorage.containerd import connect, supervise, sync_client
from moorage.oci.reference import parse_reference
from moorage.registry import Credentials, Options, Registry
from moorage.registry.login import log_in
from support.sinks import Exits
from support.workspace import Workspace

pytestmark = pytest.mark.real


def refusal(enter: Callable[[], Awaitable[object]]) -> str:
    async def main() -> str:
        with pytest.raises(errors.Unsupported) as raised:
            await enter()
        return str(raised.value)

    return trio.run(main)


def test_i21_under_trio_the_client_refuses_by_kind(workspace: Workspace) -> None:
    said = refusal(lambda: connect(workspace.containerd.address, workspace.namespace).__aenter__())
    assert said == (
        "cannot connect to containerd: an event loop of asyncio is required (anyio.run, asyncio.run); "
        "trio is not supported"
    )


def test_i21_under_trio_no_executor_and_no_containerd_begins(workspace: Workspace, tmp_path: Path) -> None:
    root, state = tmp_path / "root", tmp_path / "state"
    executor = open_executor(workspace.containerd.address, root, Exits(), namespace=workspace.namespace)
    assert "trio is not supported" in refusal(lambda: executor.__aenter__())
    assert "cannot start containerd: an event loop of asyncio" in refusal(lambda: supervise(root, state).__aenter__())
    assert list(tmp_path.iterdir()) == []


def test_i21_under_trio_the_client_of_registries_refuses_by_kind() -> None:
    registry = Registry(parse_reference("127.0.0.1:1/x:1"), options=Options(environ={}))
    assert "cannot use the registry 127.0.0.1:1: an event loop" in refusal(lambda: registry.__aenter__())
    options = Options(environ={})
    assert "cannot use the registry 127.0.0.1:1" in refusal(
        lambda: log_in("127.0.0.1:1", Credentials("me", "secret"), options=options)
    )


def test_i21_a_program_under_trio_uses_the_sync_client_in_a_thread(workspace: Workspace) -> None:
    def use() -> tuple[str, dict[str, dict[str, str]]]:
        with sync_client.connect(workspace.containerd.address, workspace.namespace) as client:
            return client.version().version, client.storage.list_leases()

    async def main() -> tuple[str, dict[str, dict[str, str]]]:
        return await trio.to_thread.run_sync(use)

    version, leases = trio.run(main)
    assert version
    assert leases == {}
