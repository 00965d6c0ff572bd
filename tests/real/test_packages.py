"""Packages out of an engine: pushed to Debian's docker-registry, named once more, shared on the disk, pruned."""

import base64
import hashlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from support.engines import EngineProcess, Refused, config, engine
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_registry(tmp_path_factory.mktemp("registries") / "plain") as served:
        yield served


@pytest.fixture(autouse=True)
def nothing_else(house: EngineProcess) -> Iterator[None]:
    yield
    for plugin in house.plugins():
        house.remove(plugin["Id"], force=True)


def fetch(registry: Served, path: str) -> tuple[bytes, str]:
    """What the registry has: bytes and media type."""
    asked = urllib.request.Request(f"http://{registry.host}/v2/{path}", headers={"Accept": SCHEMA2})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return answer.read(), answer.headers["Content-Type"]


def push(house: EngineProcess, name: str, query: str = "", **headers: str) -> list[Any]:
    """What the stream of a push says. Raises: Refused."""
    status, raw = house.request("POST", f"/plugins/{quote(name, safe='')}/push{query}", headers=headers)
    if status != 200:
        raise Refused(status, json.loads(raw)["message"])
    return [json.loads(line) for line in raw.splitlines()]


def statuses(steps: list[Any]) -> set[str]:
    return {step["status"] for step in steps if "id" in step}


def test_d04_case_060_a_push_is_dockers_schema_2_with_the_plugins_config_and_gzip(
    house: EngineProcess, registry: Served
) -> None:
    name = f"{registry.host}/t/a:1"
    house.create(name)
    steps = push(house, name)
    assert steps[0] == {"status": f"The push refers to repository [{registry.host}/t/a]"}
    assert steps[-1]["aux"]["Tag"] == "1"
    raw, kind = fetch(registry, "t/a/manifests/1")
    document = json.loads(raw)
    assert kind == document["mediaType"] == SCHEMA2
    assert document["config"]["mediaType"] == "application/vnd.docker.plugin.v1+json"
    assert [each["mediaType"] for each in document["layers"]] == ["application/vnd.docker.image.rootfs.diff.tar.gzip"]
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert steps[-1]["aux"] == {"Tag": "1", "Digest": digest, "Size": len(raw)}
    assert house.more(name)["Digest"] == digest
    layer, _ = fetch(registry, f"t/a/blobs/{document['layers'][0]['digest']}")
    assert layer[:2] == b"\x1f\x8b"
    assert len(layer) == document["layers"][0]["size"]
    assert {"Preparing", "Upload complete"} <= statuses(steps)


def test_d04_what_the_registry_has_is_not_sent_again_and_is_mounted_into_another_repository(
    house: EngineProcess, registry: Served
) -> None:
    name = f"{registry.host}/t/twice:1"
    house.create(name, None, more=os.urandom(1000))
    push(house, name)
    assert "Already exists" in statuses(push(house, name))
    assert "Upload complete" not in statuses(push(house, name))
    moved = push(house, name, f"?to={quote(f'{registry.host}/t/elsewhere:2', safe='')}")
    assert "Mounted from t/twice" in statuses(moved)
    assert "Upload complete" not in statuses(moved)
    assert fetch(registry, "t/elsewhere/manifests/2") == fetch(registry, "t/twice/manifests/1")


def test_d04_case_105_a_plugin_is_pushed_under_another_name_and_its_id_stays(
    house: EngineProcess, registry: Served
) -> None:
    house.create("a:1")
    id, digest = house.inspect("a:1")["Id"], house.more("a:1")["Digest"]
    other = f"{registry.host}/x/a:1"
    house.ours("POST", "a:1", f"tag?to={quote(other, safe='')}")
    assert house.inspect(quote(other, safe=""))["Id"] == id
    assert house.more("a:1")["Tags"] == [other]
    assert push(house, other)[-1]["aux"]["Digest"] == digest
    assert push(house, "a:1", f"?to={quote(registry.host, safe='')}%2Fy%2Fa")[-1]["aux"]["Tag"] == "latest"
    record = json.loads((house.root / "plugins" / id / "plugin.json").read_text())
    assert record["tags"] == [other]
    house.remove(quote(other, safe=""))
    assert [plugin["Name"] for plugin in house.plugins()] == ["a:1"]
    assert house.more("a:1")["Tags"] == []
    house.create(other)  # it is free again


def test_d04_a_further_name_is_nobody_elses(house: EngineProcess) -> None:
    house.create("a:1")
    house.create("b:1")
    house.ours("POST", "a:1", "tag?to=c%3A1")
    house.ours("POST", "a:1", "tag?to=c%3A1")  # once more is fine
    for taken in ("c:1", "b:1"):
        with pytest.raises(Refused, match=f"409: plugin {taken} already exists"):
            house.ours("POST", "b:1" if taken == "c:1" else "a:1", f"tag?to={quote(taken)}")
    with pytest.raises(Refused, match="409: plugin c:1 already exists"):
        house.create("c:1")
    with pytest.raises(Refused, match="400: cannot use digest"):
        house.ours("POST", "a:1", f"tag?to=x%40sha256:{'0' * 64}")
    with pytest.raises(Refused, match="404"):
        house.ours("POST", "nope", "tag?to=d")
    house.enable("c:1")
    with pytest.raises(Refused, match="409: plugin a:1 is enabled"):
        house.remove("a:1")
    house.disable("c:1")


def test_d05_a_push_proves_who_it_is_by_the_header_and_a_refusal_is_the_last_line(
    house: EngineProcess, tmp_path: Path
) -> None:
    with serve_registry(tmp_path / "login", auth=htpasswd(tmp_path)) as registry:
        name = f"{registry.host}/t/a:1"
        house.create(name)
        for user in ({}, {"username": USER, "password": "wrong"}):
            last = push(house, name, **{"X-Registry-Auth": encoded(user)})[-1]
            assert last["error"] == last["errorDetail"]["message"]
            assert registry.host in last["error"]
        good = encoded({"username": USER, "password": PASSWORD})
        assert push(house, name, **{"X-Registry-Auth": good})[-1]["aux"]["Tag"] == "1"


def encoded(user: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(user).encode()).decode()


def test_a04_a_push_that_is_wrong_from_the_start_is_a_real_status(house: EngineProcess) -> None:
    house.create("a:1")
    for status, name, query, headers in (
        (404, "nope", "", {}),
        (400, "a:1", "?to=UPPER", {}),
        (400, "a:1", f"?to=x%40sha256:{'0' * 64}", {}),
        (400, "a:1", "", {"X-Registry-Auth": "%"}),
    ):
        with pytest.raises(Refused, match=str(status)):
            push(house, name, query, **headers)


def test_a04_a_registry_that_is_not_there_is_told_in_the_stream(house: EngineProcess) -> None:
    name = "127.0.0.1:1/t/a:1"
    house.create(name)
    steps = push(house, name)
    assert steps[0]["status"] == "The push refers to repository [127.0.0.1:1/t/a]"
    assert "127.0.0.1:1" in steps[-1]["error"]


# the disk


def usage(house: EngineProcess) -> Any:
    return house.ask("GET", "/moorage/v1/df")


def test_case_068_ten_plugins_of_the_same_files_share_them_on_the_disk(house: EngineProcess) -> None:
    base = os.urandom(1_000_000)
    house.create("p0", None, base=base)
    one = usage(house)
    for number in range(1, 10):
        house.create(f"p{number}", config(description=f"number {number}"), base=base)
    ten = usage(house)
    small = 100_000  # configs, manifests, and what a snapshot takes by itself
    assert ten["ContentBytes"] < one["ContentBytes"] + small
    assert ten["LayersBytes"] == one["LayersBytes"]
    assert len(ten["Plugins"]) == 10
    for plugin in ten["Plugins"]:
        assert plugin["SharedLayersBytes"] == plugin["LayersBytes"] == ten["LayersBytes"] >= 1_000_000
        assert plugin["PackageBytes"] > plugin["SharedPackageBytes"] > 1_000_000
    assert ten["UnreferencedBytes"] == 0
    assert one["Plugins"][0]["SharedLayersBytes"] == 0


def test_case_096_the_disk_usage_counts_what_a_plugin_writes_and_keeps(house: EngineProcess) -> None:
    house.create("p", config("err=words", propagatedMount="/data"))
    directory = house.root / "plugins" / house.inspect("p")["Id"] / "propagated-mount"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "file").write_bytes(b"x" * 300_000)
    house.enable("p")
    (found,) = usage(house)["Plugins"]
    assert 300_000 <= found["DataBytes"] < 400_000
    assert found["LogsBytes"] > 0
    house.disable("p")


def test_case_096_prune_ends_what_is_left_and_touches_no_plugin(house: EngineProcess) -> None:
    house.create("p")
    before = usage(house)
    ctr(house, "content", "ingest", "--expected-size", "2000", "moorage-layer-left", data=b"x" * 1000)
    logs = house.root / "logs" / ("0" * 64)
    logs.mkdir(parents=True)
    (logs / "output").write_bytes(b"y" * 50_000)
    left = usage(house)
    assert (left["Uploads"], left["UploadsBytes"]) == (1, 1000)
    pruned = house.ask("POST", "/moorage/v1/prune")
    assert pruned["Uploads"] == 1
    assert pruned["UnderWay"] == 0
    assert pruned["FreedBytes"] >= 51_000
    assert not logs.exists()
    after = usage(house)
    assert {**after, "Plugins": []} == {**before, "Plugins": []}
    assert house.ask("POST", "/moorage/v1/prune")["FreedBytes"] == 0
    house.enable("p")
    house.ask("POST", "/moorage/v1/prune")
    assert house.state("p") == "ready"
    house.disable("p")


def ctr(house: EngineProcess, *words: str, data: bytes) -> None:
    """A ctr command that fails: an upload that is cut off."""
    address = str(house.exec_root / "containerd/c.sock")
    subprocess.run(["ctr", "-a", address, "-n", "plugins.moby", *words], input=data, capture_output=True, check=False)
