"""A client that disconnects while a package is installed or upgraded: nothing of it remains, as the pages say."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.contents import contents_of
from support.engines import EngineProcess, Refused, engine
from support.foreground import wait_until
from support.limits import limit
from support.slow_registry import StallingRegistry, stalling_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("first")  # which chooses the snapshotter, by a trial
        made.remove("first")
        yield made


def leave_while_it_downloads(house: EngineProcess, registry: StallingRegistry, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(house.socket))
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
        client.sendall(head.encode())
        assert registry.stalls.wait(limit(60))
    assert registry.left.wait(limit(60)), "the engine stops the download"


def is_installed(house: EngineProcess, registry: StallingRegistry) -> bool:
    try:
        house.install(registry.remote, "p")
    except Refused as refused:
        if refused.status != 409:
            raise
        return False
    return True


def test_d14_a_client_that_disconnects_during_an_install_leaves_nothing(house: EngineProcess) -> None:
    with stalling_registry() as registry:
        before = contents_of(house)
        path = f"/plugins/pull?remote={registry.remote}&name=p"
        leave_while_it_downloads(house, registry, path)
        wait_until(lambda: contents_of(house) == before, "nothing of it is stored")
        assert house.plugins() == []
        registry.may_go_on.set()
        wait_until(lambda: is_installed(house, registry), "the name is free again")
        assert [each["Name"] for each in house.plugins()] == ["p:latest"]
        house.remove("p")


def test_d14_a_client_that_disconnects_during_an_upgrade_leaves_the_version_of_before(house: EngineProcess) -> None:
    house.create("q")
    digest = house.more("q")["Digest"]
    with stalling_registry() as registry:
        before = contents_of(house)
        leave_while_it_downloads(house, registry, f"/plugins/q/upgrade?remote={registry.remote}")
        wait_until(lambda: contents_of(house) == before, "nothing of it is stored")
        assert house.more("q")["Digest"] == digest
        house.enable("q")
        house.disable("q")
        registry.may_go_on.set()
        house.upgrade("q", registry.remote)
        assert house.more("q")["Digest"] != digest
    house.remove("q")


def test_d14_both_pages_say_what_becomes_of_an_install_whose_client_disconnects() -> None:
    guide = " ".join((DOCS / "guide/packages.md").read_text().split())
    reference = " ".join((DOCS / "reference/api.md").read_text().split())
    assert "is cancelled (Ctrl-C, or a client that disconnects)" in guide
    assert "leaves nothing behind" in guide
    for verb in ("create", "pull", "upgrade", "push", "save", "load"):
        assert f"`{verb}`" in reference.partition("**Waiting.**")[2].partition("**Streams.**")[0], verb
