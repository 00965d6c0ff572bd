"""The recipes of docs/guide/containerd-cookbook.md, run as they stand, and the names in the page for users of Go."""

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import anyio.to_thread
import pytest

from moorage import containerd
from moorage.containerd import Client
from support.conditions import TIMEOUT_SECONDS
from support.images import push_image
from support.registries import Served, serve_registry
from support.specs import FOREVER
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio, pytest.mark.needs("docker-registry")]

DOCS = Path(__file__).resolve().parents[2] / "docs/guide"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_registry(tmp_path_factory.mktemp("registries") / "plain") as served:
        push_image(served.host, "library/box")
        yield served


@pytest.fixture
async def client(workspace: Workspace) -> AsyncIterator[Client]:
    async with workspace.client() as client:
        yield client


@pytest.fixture(scope="module")
def recipes() -> Any:
    module = ModuleType("recipes")
    for block in BLOCK.findall((DOCS / "containerd-cookbook.md").read_text()):
        exec(compile(block, "containerd-cookbook.md", "exec"), module.__dict__)
    return module


async def test_i21_an_image_is_pulled_and_run_by_the_recipes(
    recipes: Any, client: Client, registry: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = await recipes.pull(client, f"{registry.host}/library/box:3")
    assert "Complete" in capsys.readouterr().out  # a layer may have been pulled by another test
    code, output = await recipes.run(client, image, "box", ["sh", "-c", "cat who; exit 6"], tmp_path)
    assert (code, output) == (6, b"an image\n")
    await client.storage.delete_image(image.name)
    await client.storage.collect()


async def test_i21_logs_exec_events_and_metrics_are_got_by_the_recipes(
    recipes: Any, workspace: Workspace, client: Client, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert await recipes.run_with_log(client, "a", workspace.shell("a", "echo logged; exit 2"), log) == 2
    assert log.read_text() == "logged\n"
    seen: list[tuple[str, int]] = []
    ready = anyio.Event()

    async def follow() -> None:
        found = recipes.exits(client)
        ready.set()
        seen.append(await anext(found))
        await found.aclose()

    await client.create_container("b", workspace.shell("b", FOREVER), workspace.runtime)
    await client.create_task("b")
    await client.start_task("b")
    command = ["/bin/sh", "-c", "echo inside; exit 7"]
    assert await recipes.execute(client, "b", command, tmp_path / "x") == (7, b"inside\n")
    assert await recipes.memory_bytes(client, "b") > 0
    with anyio.fail_after(TIMEOUT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            async with containerd.subscribe(client) as envelopes:  # from here on the other one has begun, too
                await ready.wait()
                await client.kill("b", 9)
                await anext(envelopes)
    await client.wait("b", within=TIMEOUT_SECONDS)
    await client.delete_task("b")
    await client.delete_container("b")
    assert seen == [("b", 137)]


async def test_i21_a_blob_is_stored_by_the_recipe_and_stays(recipes: Any, workspace: Workspace, client: Client) -> None:
    digest = await recipes.store(client, "blob", b"data")
    await client.storage.collect()
    assert (await client.storage.get_content(digest)).size_bytes == 4
    await client.storage.delete_image("blob", collect=True)
    assert await anyio.to_thread.run_sync(recipes.versions, workspace.containerd.address)


def test_i21_every_name_that_the_page_for_users_of_go_gives_exists() -> None:
    from moorage.containerd import processes, sync_client

    known = {name for each in (Client, containerd.Storage, containerd, sync_client, processes) for name in dir(each)}
    page = (DOCS / "from-go-to-python.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith("|")]
    named = {
        name
        for row in rows[2:]
        for code in re.findall(r"`([^`]+)`", row[2])
        for name in re.findall(r"(?:client\.|storage\.|containerd\.|^)([a-z_]+)(?=\(|$)", code)
    }
    assert len(named) > 40
    assert named - known - {"storage", "with"} <= {"credentials", "options", "subscribe", "within"}
