"""Packages of many layers: whatever installs can be enabled, also below a data directory with a long path."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from support.engines import EngineProcess, Refused, actor, config, engine, root_of
from support.layouts import Layout, layer_tar
from support.packages import layer, make, push
from support.registries import serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

TAR = {"Content-Type": "application/x-tar"}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    deep = tmp_path_factory.mktemp("engine") / ("a-long-name-" * 8) / ("another-one-" * 8)
    deep.mkdir(parents=True)
    with engine(deep) as made:
        yield made


def assert_runs_with(house: EngineProcess, name: str, count: int) -> None:
    house.enable(name)
    files = os.listdir(root_of(house, name))
    assert {f"f{number}" for number in range(1, count)} <= set(files)
    assert (root_of(house, name) / "same").read_text() == str(count - 1), "the last layer is on top"
    house.disable(name)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("count", [2, 60, 127])
def test_case_201_a_pulled_package_of_many_layers_can_be_enabled(
    house: EngineProcess, tmp_path: Path, count: int
) -> None:
    more = [layer({f"f{number}": b"", "same": str(number).encode()}) for number in range(1, count)]
    with serve_registry(tmp_path / "registry") as registry:
        push(registry.host, "c201/many", str(count), make(config(), *more, base=layer({"actor": actor()})))
        name = f"{registry.host}/c201/many:{count}"
        house.install(name)
    assert_runs_with(house, name, count)
    assert_runs_with(house, name, count)  # the root is mounted once more
    house.remove(name)


def many(count: int) -> Layout:
    """An image of so many layers, which is a program that can be a plugin."""
    layout = Layout()
    layers = [layer_tar({"actor": (actor(), 0o755)})]
    layers += [
        layer_tar({f"f{number}": (b"", 0o644), "same": (str(number).encode(), 0o644)}) for number in range(1, count)
    ]
    layout.list(layout.image(layers))
    return layout


@pytest.mark.parametrize("count", [127])
def test_case_201_a_plugin_of_an_image_of_many_layers_can_be_enabled_saved_and_loaded(
    house: EngineProcess, count: int
) -> None:
    body = many(count).tar(config_json=json.dumps(config()).encode())
    status, raw = house.request("POST", "/moorage/v1/create?name=of-image", body, headers=TAR)
    assert status == 200, raw
    assert b'"error"' not in raw, raw
    assert_runs_with(house, "of-image", count)
    archive = house.request("GET", "/moorage/v1/save?name=of-image")[1]
    house.request_json("POST", f"/moorage/v1/load?name={quote('again:1')}", archive, headers=TAR)
    assert_runs_with(house, "again:1", count)
    for name in ("of-image", "again:1"):
        house.remove(name)


def test_case_201_more_layers_than_a_package_may_have_are_refused_before_anything_is_fetched(
    house: EngineProcess,
) -> None:
    body = many(128).tar(config_json=json.dumps(config()).encode())
    with pytest.raises(Refused, match=r"400: .*128 layers; 1 to 127"):
        house.request_json("POST", "/moorage/v1/create?name=too-many", body, headers=TAR)
    assert house.plugins() == []
