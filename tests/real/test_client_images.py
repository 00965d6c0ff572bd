"""Images by the client alone: pulled from a registry, unpacked, measured, run and deleted."""

import os
import platform
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from moorage import errors
from moorage.containerd import Client, ProgressStep
from moorage.oci.platforms import Platform
from moorage.registry import Credentials, Options
from moorage.timeouts import Timeouts
from support.images import push_image
from support.limits import limit
from support.packages import Made
from support.registries import PASSWORD, USER, Authority, Served, htpasswd, serve_registry
from support.token_server import Tokens
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.anyio, pytest.mark.needs("docker-registry")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_registry(tmp_path_factory.mktemp("registries") / "plain") as served:
        yield served


@pytest.fixture(scope="module")
def image(registry: Served) -> Made:
    return push_image(registry.host, "library/box")


@pytest.fixture
async def client(workspace: Workspace) -> AsyncIterator[Client]:
    async with workspace.client() as client:
        yield client


async def clear(client: Client) -> None:
    for image in await client.storage.list_images():
        await client.storage.delete_image(image.name)
    await client.storage.collect()


async def test_i21_an_image_is_pulled_with_progress_once_and_measured(
    workspace: Workspace, client: Client, registry: Served, image: Made
) -> None:
    name = f"{registry.host}/library/box:3"
    steps: list[ProgressStep] = []
    pulled = await client.pull(name, report=steps.append, snapshotter="native")
    assert (pulled.name, pulled.config.command, pulled.config.directory) == (name, ("cat", "who"), "/work")
    statuses = [step.status for step in steps]
    assert {"Pulling fs layer", "Downloading", "Download complete", "Extracting", "Complete"} <= set(statuses)
    assert max(step.current for step in steps) == max(len(layer.data) for layer in image.layers)
    steps.clear()
    again = await client.pull(name, report=steps.append, snapshotter="native")
    assert again == pulled
    assert "Downloading" not in {step.status for step in steps}
    storage = client.storage
    assert [each.name for each in await storage.list_images()] == [name]
    await storage.collect()
    assert await client.unpack_image(name, snapshotter="native") == pulled, "a collection has removed nothing of it"
    usage = await client.image_usage(name, snapshotter="native")
    assert usage.size_bytes > sum(len(layer.data) for layer in image.layers)
    assert usage.inodes > 10
    await clear(client)
    assert await storage.list_content() == []
    assert await storage.list_snapshots("native") == []
    with pytest.raises(errors.NotFound):
        await client.image_usage(name)


@asynccontextmanager
async def closed_registry(directory: Path, kind: str) -> AsyncIterator[Served]:
    """A registry with the image that requires a log-in: itself, or by the tokens of a server."""
    storage = {"filesystem": {"rootdirectory": str(directory / "open" / "data")}}
    with serve_registry(directory / "open") as open_one:
        push_image(open_one.host, "library/box")
    if kind == "htpasswd":
        with serve_registry(directory / "closed", auth=htpasswd(directory), storage=storage) as served:
            yield served
        return
    tokens = Tokens(Authority(directory / "ca"), knows_plugins=True, is_open=False)
    async with tokens.serve() as realm:
        with serve_registry(directory / "closed", auth=tokens.section(realm), storage=storage) as served:
            yield served
    assert "repository:library/box:pull" in {scope for scopes in tokens.scopes for scope in scopes}


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("kind", ["htpasswd", "token"])
async def test_i21_a_pull_with_credentials_succeeds_and_without_them_is_unauthorized(
    client: Client, tmp_path: Path, kind: str
) -> None:
    queried: list[str] = []

    async def find(host: str) -> Credentials:
        queried.append(host)
        return Credentials(USER, PASSWORD)

    async with closed_registry(tmp_path, kind) as closed:
        name = f"{closed.host}/library/box:3"
        with pytest.raises(errors.Unauthorized):
            await client.pull(name, snapshotter="native")
        with pytest.raises(errors.Unauthorized):
            await client.pull(name, credentials=Credentials(USER, "wrong"), snapshotter="native")
        assert await client.storage.list_images() == []
        pulled = await client.pull(name, credentials=Credentials(USER, PASSWORD), snapshotter="native")
        assert (pulled.name, pulled.config.command) == (name, ("cat", "who"))
        assert [each.name for each in await client.storage.list_images()] == [name]
        await clear(client)
        assert await client.pull(name, credentials=find, snapshotter="native") == pulled
        assert set(queried) == {closed.host}
        with pytest.raises(errors.NotFound):  # with credentials it says that it has none
            await client.pull(f"{closed.host}/library/absent", credentials=Credentials(USER, PASSWORD))
    await clear(client)
    assert await client.storage.list_content() == []


async def test_i21_the_time_limits_of_a_client_bound_the_registry_too(workspace: Workspace) -> None:
    async def answer_busy(request: web.BaseRequest) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "5"})

    runner = web.ServerRunner(web.Server(answer_busy))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    name = f"127.0.0.1:{runner.addresses[0][1]}/x"
    try:
        async with workspace.client(Timeouts(registry_retry_after=2)) as client:
            with pytest.raises(errors.Unavailable, match="it asks to wait 5 s, over 2 s"):
                await client.pull(name, options=Options(environ={}))
    finally:
        await runner.cleanup()


async def test_i21_a_failed_pull_leaves_nothing_and_says_the_cause(
    client: Client, registry: Served, image: Made
) -> None:
    name = f"{registry.host}/library/box:3"
    with pytest.raises(errors.NotFound, match="for linux/riscv64, only for: linux/s390x, linux/amd64"):
        await client.pull(name, platform=Platform("linux", "riscv64"))
    with pytest.raises(errors.NotFound):
        await client.pull(f"{registry.host}/library/absent")
    with pytest.raises(errors.Invalid, match="invalid reference"):
        await client.pull("A B")
    with pytest.raises(errors.Unavailable):
        await client.pull("127.0.0.1:1/x", options=Options(environ={}))
    with pytest.raises(errors.NotFound):
        await client.unpack_image("absent")
    assert await client.storage.list_leases() == {}
    assert await client.storage.list_images() == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the image of the test is for amd64")
def test_i21_an_ordinary_image_runs_in_thirty_lines(workspace: Workspace, registry: Served, image: Made) -> None:
    program = ROOT / "examples/run-image/run.py"
    body = program.read_text().partition("async def main")[2].partition("if __name__ ==")[0].strip()
    assert len(body.splitlines()) <= 30
    command = [sys.executable, str(program), workspace.containerd.address, f"{registry.host}/library/box:3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [*command, "sh", "-c", "cat who; echo $LEVEL; exit 4"],
        env=environment, capture_output=True, text=True, timeout=limit(60), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (4, "an image\n3\n", "")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit(60), check=False)
    assert (done.returncode, done.stdout) == (0, "an image\n"), done.stderr
