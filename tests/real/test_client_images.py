"""Images by the client alone: pulled from a registry, unpacked, measured, run and deleted."""

import os
import platform
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from moorage import errors
from moorage.containerd import Client, ProgressStep
from moorage.oci.platforms import Platform
from moorage.registry import Credentials, Options
from support.images import push_image
from support.limits import limit
from support.packages import Made
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry
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


async def test_i21_credentials_and_platforms_decide_what_is_pulled(client: Client, tmp_path: Path) -> None:
    with serve_registry(tmp_path / "closed", auth=htpasswd(tmp_path)) as closed:
        name = f"{closed.host}/library/box:3"
        with pytest.raises(errors.Unauthorized):
            await client.pull(name)
        with pytest.raises(errors.NotFound):  # with credentials it says that it has none
            await client.pull(name, credentials=Credentials(USER, PASSWORD))
    assert await client.storage.list_images() == []


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
