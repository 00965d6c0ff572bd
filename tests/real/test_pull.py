"""Plugins from Debian's docker-registry into a whole engine, by Docker's calls and by ours."""

import os
from collections.abc import Iterator

import pytest

from support import packages
from support.engines import EngineProcess, Refused, config, engine
from support.registries import Served, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry", "zstd")]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_registry(tmp_path_factory.mktemp("registry") / "plain") as served:
        yield served


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine"), timeouts={"ready": 3.0}) as made:
        yield made


@pytest.fixture
def house(shared_house: EngineProcess) -> Iterator[EngineProcess]:
    """An engine without plugins, before and after."""
    yield shared_house
    for plugin in shared_house.plugins():
        shared_house.remove(plugin["Name"], force=True)


def test_d03_a_pulled_plugin_runs(house: EngineProcess, registry: Served) -> None:
    made = packages.make(config(), packages.layer({"big": os.urandom(3_000_000)}))
    packages.push(registry.host, "t/a", "v1", made)
    remote = f"{registry.host}/t/a:v1"
    assert house.privileges(remote) == []
    house.install(remote)
    assert house.inspect(remote)["PluginReference"] == remote
    assert house.more(remote)["Digest"] == made.digest
    house.enable(remote)
    with pytest.raises(Refused, match="already exists"):
        house.install(remote)
