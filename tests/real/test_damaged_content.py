"""Blobs of containerd's store that were damaged while no engine ran: found by digest, replaced, never unpacked."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

from moorage.containerd import connect
from support import packages
from support.contents import contents_of
from support.corruption import DAMAGES, blob
from support.engines import EngineProcess, Refused, actor, config, engine, root_of
from support.layouts import Layout, files_of, layer_tar
from support.packages import Made, layer, make, push
from support.registries import Served

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

TAR = {"Content-Type": "application/x-tar"}


@pytest.fixture(scope="module")
def shared_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def house(shared_house: EngineProcess) -> Iterator[EngineProcess]:
    """An engine that runs, without plugins before and after."""
    if shared_house.child is None:
        shared_house.start()
    yield shared_house
    if shared_house.child is None:
        shared_house.start()
    for plugin in shared_house.plugins():
        shared_house.remove(plugin["Id"], force=True)


def names(path: Path) -> set[str]:
    return set(os.listdir(path))


def while_down(house: EngineProcess, damage: str, *digests: str) -> None:
    """End everything, damage these blobs, start again."""
    house.down()
    for digest in digests:
        DAMAGES[damage](blob(house.root, digest))
    house.start()


def is_whole(house: EngineProcess, *digests: str) -> bool:
    """Whether these files are what they are called."""
    return all(packages.digest_of(blob(house.root, digest).read_bytes()) == digest for digest in digests)


def bulk(name: str, size: int) -> packages.Blob:
    """A layer of one file that cannot be compressed."""
    return layer({name: os.urandom(size)})


@pytest.mark.sampled(2)
@pytest.mark.parametrize("damage", DAMAGES)
def test_case_217_218_another_package_on_a_damaged_layer_has_its_files_and_the_first_one_keeps_them(
    house: EngineProcess, registry: Served, damage: str
) -> None:
    base, shared = layer({"actor": actor()}), bulk("precious", 300_000)
    first, other = make(config(), shared, base=base), Made(make().config, (shared, base))
    push(registry.host, "c217/first", "1", first)
    push(registry.host, "c217/other", "1", other)
    house.install(f"{registry.host}/c217/first:1")
    while_down(house, damage, shared.digest)
    house.install(f"{registry.host}/c217/other:1")
    assert is_whole(house, shared.digest, base.digest)
    for name in ("first", "other"):
        house.upgrade(f"{registry.host}/c217/{name}:1")
        house.enable(f"{registry.host}/c217/{name}:1")
        assert (root_of(house, f"{registry.host}/c217/{name}:1") / "precious").stat().st_size == 300_000


KINDS = ("emptied", "halved", "flipped", "deleted")
PARTS = ("manifest", "config", "first layer", "second layer", "everything")


def install_all(house: EngineProcess, registry: Served, path: str) -> dict[tuple[str, str], tuple[str, Made]]:
    """A package for each part and each kind of damage, which is done to it, with one restart for all."""
    found: dict[tuple[str, str], tuple[str, Made]] = {}
    digests: list[tuple[str, str]] = []
    for part in PARTS:
        for damage in KINDS:
            name = f"{registry.host}/{path}:{part.replace(' ', '-')}-{damage}"
            made = make(config(), bulk("kept", 5_000), base=layer({"actor": actor(), "own": name.encode()}))
            made = replace(made, config=replace(made.config, data=made.config.data.replace(b"an actor", name.encode())))
            push(registry.host, path, name.rpartition(":")[2], made)
            house.install(name)
            found[part, damage] = name, made
            digests += [(damage, digest) for digest in digests_of(made, part)]
    house.down()
    for damage, digest in digests:
        DAMAGES[damage](blob(house.root, digest))
    house.start()
    return found


def digests_of(made: Made, part: str) -> list[str]:
    everything = [made.digest, *(each.digest for each in made.blobs)]
    return everything if part == "everything" else [everything[PARTS.index(part)]]


def test_case_217_an_upgrade_to_the_own_reference_repairs_every_part_and_removes_no_file(
    house: EngineProcess, registry: Served
) -> None:
    found = install_all(house, registry, "c217/own")
    before = contents_of(house)
    for name, _ in found.values():
        house.upgrade(name)
    assert contents_of(house).blobs == before.blobs, "nothing of it was collected"
    for name, made in found.values():
        assert is_whole(house, *digests_of(made, "everything"))
        house.enable(name)
        assert {"kept", "actor", "own"} <= names(root_of(house, name))
        house.disable(name)
        assert_saves(house, name, made)


def assert_saves(house: EngineProcess, name: str, made: Made) -> None:
    status, body = house.request("GET", f"/moorage/v1/save?name={quote(name, safe='')}")
    assert status == 200, body
    saved = files_of(body)
    assert {f"blobs/{each.digest.replace(':', '/')}" for each in made.blobs} <= set(saved)


def test_case_218_save_and_push_name_the_blob_and_the_way_out_and_change_nothing(
    house: EngineProcess, registry: Served
) -> None:
    for (part, _), (name, made) in install_all(house, registry, "c218/way").items():
        operations: tuple[Callable[[], Any], ...] = (
            lambda name=name: house.request_json("GET", f"/moorage/v1/save?name={quote(name, safe='')}"),  # type: ignore[misc]
            lambda name=name: house.request_json("POST", f"/plugins/{quote(name, safe='')}/push"),  # type: ignore[misc]
        )
        for operation in operations:
            with pytest.raises(Refused) as refused:
                operation()
            assert refused.value.status == 409
            digest = digests_of(made, part)[0]
            assert f"blob {digest} in containerd's content store is damaged" in refused.value.message
            assert f"moorage upgrade {name}, or moorage load" in refused.value.message
        house.upgrade(name)
        assert_saves(house, name, made)


@pytest.mark.parametrize("damage", ["emptied", "deleted"])
def test_case_218_create_of_the_same_files_replaces_a_damaged_layer(house: EngineProcess, damage: str) -> None:
    house.create("one", config(description="one"), kept=b"k" * 4_000)
    before = contents_of(house).blobs
    sizes = {digest: blob(house.root, digest).stat().st_size for digest in before}
    biggest = max(sizes, key=lambda digest: sizes[digest])  # the layer
    while_down(house, damage, biggest)
    house.create("two", config(description="two"), kept=b"k" * 4_000)
    assert is_whole(house, biggest)
    house.enable("two")
    assert {"kept", "actor"} <= names(root_of(house, "two"))
    status, _ = house.request("GET", "/moorage/v1/save?name=one&name=two")
    assert status == 200


@pytest.mark.sampled(2)
@pytest.mark.parametrize("damage", ["halved", "deleted"])
@pytest.mark.parametrize("kind", ["all of it", "manifest", "layer"])
def test_case_218_a_load_repairs_what_is_here(house: EngineProcess, kind: str, damage: str) -> None:
    layout = Layout()
    entry = layout.plugin(config(), [layer_tar({"actor": (actor(), 0o755), "kept": (os.urandom(999), 0o644)})])
    layout.list(entry, "docker.io/c218/loaded:1")
    house.request_json("POST", "/moorage/v1/load", layout.tar(), headers=TAR)
    manifest = json.loads(layout.blobs[entry["digest"]])
    parts = {"all of it": list(layout.blobs), "manifest": [entry["digest"]], "layer": [manifest["layers"][0]["digest"]]}
    while_down(house, damage, *parts[kind])
    house.request_json("POST", "/moorage/v1/load", layout.tar(), headers=TAR)
    assert is_whole(house, *layout.blobs)
    house.request_json("POST", "/moorage/v1/load?name=second", layout.tar(), headers=TAR)
    house.enable("second")
    assert {"kept", "actor"} <= names(root_of(house, "second"))
    house.remove("second", force=True)
    status, _ = house.request("GET", "/moorage/v1/save?name=c218/loaded:1")
    assert status == 200


def test_case_217_a_blob_that_is_damaged_under_a_running_engine_is_not_unpacked(
    house: EngineProcess, registry: Served
) -> None:
    base, shared = layer({"actor": actor()}), bulk("precious", 100_000)
    push(registry.host, "c217/running", "1", make(config(), shared, base=base))
    push(registry.host, "c217/running", "2", Made(make().config, (shared, base)))
    house.install(f"{registry.host}/c217/running:1")
    DAMAGES["emptied"](blob(house.root, shared.digest))
    house.install(f"{registry.host}/c217/running:2")
    house.enable(f"{registry.host}/c217/running:2")
    assert (root_of(house, f"{registry.host}/c217/running:2") / "precious").stat().st_size == 100_000


def test_case_217_a_label_that_a_damaged_blob_left_is_not_believed(house: EngineProcess, registry: Served) -> None:
    layers = (layer({"actor": actor()}), bulk("precious", 50_000))
    diff_ids = [packages.digest_of(gzip.decompress(each.data)) for each in layers]
    document = {**config(), "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    made = make(document, layers[1], base=layers[0])
    push(registry.host, "c217/label", "1", made)
    house.install(f"{registry.host}/c217/label:1")
    empty = packages.digest_of(b"")

    async def poison() -> None:
        async with connect(str(house.exec_root / "containerd/c.sock"), house.namespace) as client:
            labels = {"containerd.io/uncompressed": empty}
            await client.storage.set_content_labels(layers[1].digest, labels)

    anyio.run(poison)
    house.upgrade(f"{registry.host}/c217/label:1")
    house.enable(f"{registry.host}/c217/label:1")
    assert (root_of(house, f"{registry.host}/c217/label:1") / "precious").stat().st_size == 50_000
