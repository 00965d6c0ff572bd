"""What registries, networks, disks and clients do to a pull: a clear error, nothing half-installed, nothing left."""

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from support.contents import Contents, contents_of, wait_for
from support.engines import EngineProcess, Refused, UnixConnection, config, engine
from support.fault_registry import Answer, FaultRegistry, always, begin_of, claims, cut, sends, sends_slowly
from support.foreground import wait_until
from support.limits import limit
from support.packages import GZIP, Blob, Made, layer, make
from support.registry_faults import fault_registry, offer, requests_for

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

# A registry that stalls is given up soon; one that is only slow because the machine is busy is tried again.
TIMEOUTS = {"registry_stall": limit(1.0), "registry_retry_first": 0.02, "registry_retry_limit": 0.1}
BIG = layer({"big": os.urandom(1_500_000)})
GARBAGE = Blob(b"this is no layer" * 1000, GZIP)


@pytest.fixture(scope="module")
def shared_registry() -> Iterator[FaultRegistry]:
    with fault_registry() as made:
        yield made


@pytest.fixture(scope="module")
def shared_house(shared_registry: FaultRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine"), timeouts=TIMEOUTS, mirrors=[shared_registry.url]) as made:
        yield made


@pytest.fixture
def house(shared_house: EngineProcess) -> Iterator[EngineProcess]:
    """An engine without plugins, before and after."""
    yield shared_house
    for plugin in shared_house.plugins():
        shared_house.remove(plugin["Name"], force=True)


@pytest.fixture(scope="module")
def empty(shared_house: EngineProcess) -> Contents:
    """What containerd stores when there is no plugin, and never was one."""
    return contents_of(shared_house)


@pytest.fixture
def registry(shared_registry: FaultRegistry) -> FaultRegistry:
    """A registry that has nothing yet, and is the mirror of docker.io."""
    shared_registry.answers.clear()
    shared_registry.seen.clear()
    return shared_registry


def drops(data: bytes, *offsets: int) -> Answer:
    """Breaks off at each of these offsets once, in order, and continues from the requested offset."""
    left = list(offsets)

    async def answer(request: web.Request) -> web.StreamResponse:
        begin = begin_of(request)
        end = left.pop(0) if left else len(data)
        response = web.StreamResponse(status=206 if begin else 200)
        response.content_length = len(data) - begin
        if begin:
            response.headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        await response.write(data[begin:end])
        if end < len(data):
            cut(request)
        return response

    return answer


def two(*, second: Blob = BIG) -> Made:
    return make(config(), second)


WRONG: dict[str, tuple[Made, dict[str, Answer], str]] = {
    "digest": (two(), {"layer1": sends(BIG.data[:-1] + b"\1")}, "digest"),
    "size": (two().with_layer(1, size=len(BIG.data) + 1), {}, "promised"),
    "truncated": (two(), {"layer1": claims(len(BIG.data), BIG.data[:1000])}, "received 1000 of"),
    "endless": (two(), {"layer1": sends_slowly(None, 0.0, b"x" * 100_000)}, "more than the promised"),
    "10 GB": (two().with_layer(1, size=10 << 30), {}, "promised"),
    "slow": (two(), {"layer1": sends_slowly(len(BIG.data), 0.2)}, "bytes a second"),
    "storm of 500": (two(), {"layer1": always(500, "internal words")}, "internal words"),
    "429": (two(), {"layer1": always(429, "slow down", Retry_After="3600")}, "slow down"),
    "gone": (two(), {"layer0": always(404, "no such blob")}, "no such blob"),
    "no layer": (two(second=GARBAGE), {}, "cannot unpack layer"),
    "config": (two(), {"config": sends(b"{}")}, "promised"),
}


@pytest.mark.parametrize("name", WRONG)
def test_case_090_case_096_what_is_wrong_is_reported_and_leaves_nothing(
    house: EngineProcess, registry: FaultRegistry, empty: Contents, name: str
) -> None:
    made, instead, text = WRONG[name]
    remote = offer(registry, made, instead=instead)
    with pytest.raises(Refused, match=text) as caught:
        house.install(remote, "p")
    assert (caught.value.status == 200) == (name != "config"), "after the first byte it is a line of the stream"
    assert house.plugins() == []
    wait_for(house, empty)
    assert (list((house.root / "tmp").iterdir()), list((house.root / "plugins").iterdir())) == ([], [])


def test_d03_a_connection_that_breaks_again_and_again_is_resumed(house: EngineProcess, registry: FaultRegistry) -> None:
    offsets = sorted(random.Random(7).sample(range(1, len(BIG.data)), 4))
    remote = offer(registry, two(), instead={"layer1": drops(BIG.data, *offsets)})
    house.install(remote, "p")
    begins = [each.range for each in registry.seen if BIG.digest in each.path]
    assert len(begins) >= 5
    assert any(begins), "what came is not asked for again"
    house.enable("p")


def test_d06_a_redirect_to_another_host_does_not_take_the_credentials_along(
    house: EngineProcess, registry: FaultRegistry
) -> None:
    with fault_registry() as other:
        other.answers["GET", "elsewhere"] = sends(BIG.data)

        async def unavailable(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"{other.url}/v2/elsewhere")

        remote = offer(registry, two(), instead={"layer1": unavailable})
        house.install(remote, "p", **{"X-Registry-Auth": "eyJ1c2VybmFtZSI6Im1lIiwicGFzc3dvcmQiOiJzIn0="})
        assert [each.authorization for each in other.seen] == [None]


def test_d06_case_104_a_mirror_is_queried_first_for_content_of_docker_io(
    house: EngineProcess, registry: FaultRegistry
) -> None:
    offer(registry, two(), "vieux/sshfs")
    assert house.privileges("vieux/sshfs") == []
    house.install("vieux/sshfs")
    assert house.inspect("vieux/sshfs")["PluginReference"] == "docker.io/vieux/sshfs:latest"
    assert requests_for(registry, "vieux/sshfs/blobs/") == 4  # two configs, two layers


class Client:
    """A docker CLI that can be removed."""

    def __init__(self, house: EngineProcess, remote: str, name: str) -> None:
        self._connection = UnixConnection(house.socket, 60)
        self._connection.request("POST", f"/plugins/pull?remote={remote}&name={name}", b"")
        self.answer = self._connection.getresponse()

    def until(self, status: str) -> None:
        for raw in self.answer:
            if json.loads(raw)["status"] == status:
                return
        raise AssertionError(f"no {status}")

    def leave(self) -> None:
        self.answer.close()
        self._connection.close()


def halting(data: bytes) -> Answer:
    """As slow as may be: it takes minutes, and is not given up."""
    return sends_slowly(len(data), 0.1, data[:2048])


def slow_until(data: bytes, event: threading.Event) -> Answer:
    """These bytes, slowly until something happens."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(data)
        await response.prepare(request)
        at = 0
        while not event.is_set():
            await response.write(data[at : at + 512])
            at += 512
            await anyio.sleep(0.05)
        await response.write(data[at:])
        return response

    return answer


def test_d08_a_client_that_leaves_ends_its_pull_and_locks_nothing(
    house: EngineProcess, registry: FaultRegistry, empty: Contents
) -> None:
    client = Client(house, offer(registry, two(), instead={"layer1": halting(BIG.data)}), "p")
    client.until("Complete")  # the first layer is unpacked
    with pytest.raises(Refused, match="409: plugin p:latest already exists"):
        house.install(f"{registry.host}/t/p", "p")
    client.leave()
    wait_until(lambda: registry.under_way == 0, "the download ends with its client")
    wait_for(house, empty)
    house.install(offer(registry, two()), "p")


def test_d08_two_pulls_of_one_package_share_what_they_read(house: EngineProcess, registry: FaultRegistry) -> None:
    both = threading.Event()

    remote = offer(registry, two(), instead={"layer1": slow_until(BIG.data, both)})
    failures: list[BaseException] = []

    def install(name: str) -> None:
        try:
            house.install(remote, name)
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=install, args=(name,)) for name in ("p", "q")]
    for thread in threads:
        thread.start()
    wait_until(lambda: requests_for(registry, two().config.digest) == 2, "both have begun")
    both.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert requests_for(registry, BIG.digest) == 1
    assert [plugin["Name"] for plugin in house.plugins()] == ["p:latest", "q:latest"]


# ------------------------------------------------------------------------------------------------------- kills

STEPS: dict[str, dict[str, Callable[[bytes], Answer]]] = {
    "in the first layer": {"layer0": halting},
    "in the second layer": {"layer1": halting},
}


@pytest.mark.parametrize("step", STEPS)
def test_m10_case_107_killed_at_each_step_of_a_pull_nothing_is_left(
    house: EngineProcess, registry: FaultRegistry, empty: Contents, step: str
) -> None:
    made = two()
    blobs = {"config": made.config, "layer0": made.layers[0], "layer1": made.layers[1]}
    offer(registry, made, instead={name: answer(blobs[name].data) for name, answer in STEPS[step].items()})
    halts = list(STEPS[step])[-1]

    def pull() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, Refused, ValueError):
            house.install(f"{registry.host}/t/p", "p")

    thread = threading.Thread(target=pull)
    thread.start()
    wait_until(lambda: requests_for(registry, blobs[halts].digest) > 0, step)
    if step == "in the second layer":
        wait_until(
            lambda: any(name.startswith("sha256:") for name in contents_of(house).snapshots), "the first is there"
        )
    house.end(signal.SIGKILL)
    thread.join()
    house.start()
    assert house.plugins() == []
    wait_for(house, empty)
    assert (list((house.root / "tmp").iterdir()), list((house.root / "plugins").iterdir())) == ([], [])


# -------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A data directory on a file system of 32 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_case_096_a_disk_that_fills_up_is_as_before_after_the_failure(
    small_disk: Path, registry: FaultRegistry
) -> None:
    def used() -> int:
        found = os.statvfs(small_disk)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    huge = layer({"huge": os.urandom(40_000_000)}, "application/vnd.docker.image.rootfs.diff.tar")
    with engine(small_disk) as house:
        house.install(offer(registry, make(), "t/small"), "small")
        house.remove("small")
        before, started = contents_of(house), used()
        for _ in range(2):
            with pytest.raises(Refused, match=r"no space left on device"):
                house.install(offer(registry, make(config(), huge), "t/huge"), "p")
            wait_for(house, before)
        assert used() < started + 2_000_000, "the databases may have grown"
        house.install(offer(registry, make(), "t/small"), "small")
        house.remove("small")
