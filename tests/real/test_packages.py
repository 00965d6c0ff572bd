"""Packages out of an engine: pushed to Debian's docker-registry, named once more, shared on the disk, pruned."""

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from support.engines import EngineProcess, Refused, actor, config, engine, package
from support.layouts import OCI_INDEX, PLUGIN_CONFIG, Layout, digest_of, files_of, gzip_members, layer_tar, tar_of
from support.limits import limit
from support.registries import PASSWORD, USER, Served, htpasswd, serve_registry

pytestmark = [
    pytest.mark.real,
    pytest.mark.needs("static-cc", "docker-registry"),
    pytest.mark.usefixtures("nothing_else"),
]

SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"


def fetch(registry: Served, path: str) -> tuple[bytes, str]:
    """What the registry has: bytes and media type."""
    manifest_request = urllib.request.Request(f"http://{registry.host}/v2/{path}", headers={"Accept": SCHEMA2})
    with urllib.request.urlopen(manifest_request, timeout=limit(20)) as answer:
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
    house.request_own("POST", "a:1", f"tag?to={quote(other, safe='')}")
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


def test_d04_a_further_name_is_not_taken(house: EngineProcess) -> None:
    house.create("a:1")
    house.create("b:1")
    house.request_own("POST", "a:1", "tag?to=c%3A1")
    house.request_own("POST", "a:1", "tag?to=c%3A1")  # once more is fine
    for taken in ("c:1", "b:1"):
        with pytest.raises(Refused, match=f"409: plugin {taken} already exists"):
            house.request_own("POST", "b:1" if taken == "c:1" else "a:1", f"tag?to={quote(taken)}")
    with pytest.raises(Refused, match="409: plugin c:1 already exists"):
        house.create("c:1")
    with pytest.raises(Refused, match="400: cannot use digest"):
        house.request_own("POST", "a:1", f"tag?to=x%40sha256:{'0' * 64}")
    with pytest.raises(Refused, match="404"):
        house.request_own("POST", "nope", "tag?to=d")
    house.enable("c:1")
    with pytest.raises(Refused, match="409: plugin a:1 is enabled"):
        house.remove("a:1")
    house.disable("c:1")


def test_d05_a_push_authenticates_by_the_header_and_a_refusal_is_the_last_line(
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


def test_a04_an_unreachable_registry_is_reported_in_the_stream(house: EngineProcess) -> None:
    name = "127.0.0.1:1/t/a:1"
    house.create(name)
    steps = push(house, name)
    assert steps[0]["status"] == "The push refers to repository [127.0.0.1:1/t/a]"
    assert "127.0.0.1:1" in steps[-1]["error"]


def test_d04_d09_a_package_that_is_not_whole_goes_nowhere(house: EngineProcess) -> None:
    house.create("p")
    (layer,) = [name for name in files_of(save(house, "p")) if name.startswith("blobs/")][2:]
    ctr(house, "content", "rm", layer.removeprefix("blobs/").replace("/", ":"))
    for broken in (lambda: push(house, "p"), lambda: save(house, "p")):
        with pytest.raises(Refused, match=r"409: cannot read the package of plugin p:latest: .* not in containerd"):
            broken()
    assert usage(house)["Plugins"][0]["Name"] == "p:latest"  # it can still be inspected, run, and removed
    house.enable("p")
    house.disable("p")


# the disk


def usage(house: EngineProcess) -> Any:
    return house.request_json("GET", "/moorage/v1/df")


def prune(house: EngineProcess) -> Any:
    return house.request_json("POST", "/moorage/v1/prune")


def test_case_068_ten_plugins_of_the_same_files_share_them_on_the_disk(house: EngineProcess) -> None:
    base = os.urandom(1_000_000)
    prune(house)  # what earlier tests left to the next collection
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
    prune(house)
    before = usage(house)
    ref = f"moorage-{house.info()['ID']}-moorage-layer-left"
    ctr(house, "content", "ingest", "--expected-size", "2000", ref, data=b"x" * 1000)
    logs = house.root / "logs" / ("0" * 64)
    logs.mkdir(parents=True)
    (logs / "output").write_bytes(b"y" * 50_000)
    left = usage(house)
    assert (left["Uploads"], left["UploadsBytes"]) == (1, 1000)
    pruned = prune(house)
    assert pruned["Uploads"] == 1
    assert pruned["UnderWay"] == 0
    assert pruned["FreedBytes"] >= 51_000
    assert not logs.exists()
    after = usage(house)
    assert {**after, "Plugins": []} == {**before, "Plugins": []}
    assert prune(house)["FreedBytes"] == 0
    house.enable("p")
    prune(house)
    assert house.state("p") == "ready"
    house.disable("p")


def ctr(house: EngineProcess, *words: str, data: bytes = b"") -> None:
    """A ctr command; an upload of less than it says fails, and is left."""
    address = str(house.exec_root / "containerd/c.sock")
    subprocess.run(["ctr", "-a", address, "-n", "plugins.moby", *words], input=data, capture_output=True, check=False)


# archives


def save(house: EngineProcess, *names: str) -> bytes:
    query = "&".join(f"name={quote(name, safe='')}" for name in names)
    status, raw = house.request("GET", f"/moorage/v1/save?{query}")
    if status != 200:
        raise Refused(status, json.loads(raw)["message"])
    return raw


def load(house: EngineProcess, archive: bytes, name: str = "") -> Any:
    query = f"?name={quote(name, safe='')}" if name else ""
    return house.request_json(
        "POST", f"/moorage/v1/load{query}", archive, headers={"Content-Type": "application/x-tar"}
    )


def nothing_left(house: EngineProcess) -> None:
    """No content, no snapshot, no upload: containerd collects by itself a moment after the last lease ends."""

    def is_empty() -> bool:
        found = usage(house)
        return not any(found[key] for key in ("ContentBytes", "LayersBytes", "WrittenBytes", "Uploads"))

    house.wait_until(is_empty, "nothing is left in containerd")


def test_d09_what_is_saved_loads_elsewhere_without_a_registry_and_runs(house: EngineProcess, tmp_path: Path) -> None:
    house.create("a:1", None, one=b"1")
    house.create("127.0.0.1:5000/t/b:2", config(description="b"), two=os.urandom(100_000))
    digests = {plugin["Name"]: plugin["Moorage"]["Digest"] for plugin in house.plugins()}
    archive = save(house, "a:1", "127.0.0.1:5000/t/b:2", house.inspect("a:1")["Id"])
    assert archive == save(house, "a:1", "127.0.0.1:5000/t/b:2")  # always the same bytes, and each plugin once
    with engine(tmp_path) as other:
        loaded = load(other, archive)
        assert [(each["Name"], each["New"]) for each in loaded] == [("a:1", True), ("127.0.0.1:5000/t/b:2", True)]
        assert {plugin["Name"]: plugin["Moorage"]["Digest"] for plugin in other.plugins()} == digests
        other.enable("127.0.0.1:5000/t/b:2")
        assert other.state("127.0.0.1:5000/t/b:2") == "ready"
        assert save(other, "a:1", "127.0.0.1:5000/t/b:2") == archive
        assert [each["New"] for each in load(other, archive)] == [False, False]
        other.disable("127.0.0.1:5000/t/b:2")


def test_d02_a_package_and_a_layer_of_several_gzip_members_are_whole(house: EngineProcess) -> None:
    """Also where containerd decompresses: the layer of an archive's plugin stays unchanged."""
    body = gzip_members(package(config(), {"bulk": os.urandom(300_000)}))
    house.request_json("POST", "/plugins/create?name=members:1", body, headers={"Content-Type": "application/x-tar"})
    house.enable("members:1")
    house.disable("members:1")
    layout = Layout()
    plain = layer_tar({"actor": (actor(), 0o755), "bulk": (os.urandom(300_000), 0o644)})
    rootfs = {"type": "layers", "diff_ids": [digest_of(plain)]}
    blob = layout.add_json({**config(), "rootfs": rootfs}, PLUGIN_CONFIG)
    layout.list(layout.manifest(blob, [layout.layer(plain, "gzip members")]), "docker.io/members/b:1")
    load(house, layout.tar())
    house.enable("members/b:1")
    house.disable("members/b:1")


@pytest.mark.parametrize("form", ["gzip", "gzip members", "dots", "named"])
def test_d09_archives_come_in_several_forms(house: EngineProcess, form: str) -> None:
    house.create("a:1", None, more=os.urandom(10_000))
    digest, archive, name = house.more("a:1")["Digest"], save(house, "a:1"), "a:1"
    house.remove("a:1")
    if form == "gzip":
        archive = gzip.compress(archive)
    elif form == "gzip members":
        archive = gzip_members(archive, 5_001)
    elif form == "dots":
        archive = tar_of(files_of(archive), "./")
    else:
        name = "other:2"
    (loaded,) = load(house, archive, "other:2" if form == "named" else "")
    assert (loaded["Name"], loaded["Digest"]) == (name, digest)
    house.enable(name)
    house.disable(name)


def test_d09_a_plugin_that_another_tool_keeps_in_ocis_types_and_layers_loads_as_it_is(house: EngineProcess) -> None:
    layout = Layout()
    base = layer_tar({"actor": (actor(), 0o755), "old": (b"old", 0o644)})
    top = layer_tar({".wh.old": (b"", 0o644), "new": (b"new", 0o644)})
    target = layout.plugin(config(), [base, top])
    index = layout.add_json(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            {**layout.plugin(config(description="other"), [top]), "platform": {"os": "linux", "architecture": "s390x"}},
            {**target, "platform": {"os": "linux", "architecture": "amd64"}},
        ]},
        OCI_INDEX,
    )  # fmt: skip
    layout.list(index, "docker.io/t/indexed:1")
    layout.list(target, "docker.io/t/plain:1")
    assert [each["Name"] for each in load(house, layout.tar())] == ["t/indexed:1", "t/plain:1"]
    for name in ("t/indexed:1", "t/plain:1"):
        assert house.more(name)["Digest"] == target["digest"]
        house.enable(name)
        root = house.exec_root / "p" / house.inspect(name)["Id"][:12] / "root"
        assert (root / "new").read_text() == "new"
        assert not (root / "old").exists()
        house.disable(name)
    (entry,) = save_index(house, "t/plain:1")["manifests"]
    assert (entry["mediaType"], entry["digest"]) == (target["mediaType"], target["digest"])


def save_index(house: EngineProcess, name: str) -> Any:
    return json.loads(files_of(save(house, name))["index.json"])


def link(name: str, to: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, to
        archive.addfile(member)
    return stream.getvalue()


def other_platform() -> bytes:
    layout = Layout()
    target = layout.plugin(config(), [layer_tar({"x": (b"x", 0o644)})])
    layout.list(target, "docker.io/t/a:1", platform={"os": "linux", "architecture": "s390x"})
    layout.list(target, "docker.io/t/a:1", platform={"os": "linux", "architecture": "riscv64"})
    return layout.tar()


def an_image() -> bytes:
    layout = Layout()
    layout.list(layout.image([layer_tar({"x": (b"x", 0o644)})]), "docker.io/t/a:1")
    return layout.tar()


BAD: dict[str, tuple[Callable[[dict[str, bytes]], bytes], int, str]] = {
    "empty": (lambda files: b"", 400, "it ends before the end mark"),
    "no tar": (lambda files: b"nonsense" * 1000, 400, "it is no tar"),
    "truncated": (lambda files: tar_of(files)[:150_000], 400, "it ends in the middle of blobs/sha256/"),
    "truncated gzip": (lambda files: gzip.compress(tar_of(files))[:-100_000], 400, "it ends in the middle of"),
    "damaged gzip": (lambda files: b"\x1f\x8b\x08" + bytes(1000), 400, "gzip"),
    "no layout": (lambda files: tar_of({"x": b"x"}), 400, "it has no index.json"),
    "no JSON": (lambda files: tar_of({**files, "index.json": b"{"}), 400, "index.json cannot be read"),
    "no entries": (lambda files: tar_of({**files, "index.json": b"{}"}), 400, "index.json cannot be read"),
    "no name": (
        lambda files: tar_of({**files, "index.json": files["index.json"].replace(b"annotations", b"notes")}),
        400,
        "does not say what its plugin is called",
    ),
    "wrong digest": (
        lambda files: tar_of({name: wrong(name, data) for name, data in files.items()}),
        400,
        "is not what its name says",
    ),
    "missing layer": (lambda files: tar_of(without_largest(files)), 400, "is not in it"),
    "path": (lambda files: tar_of({"../../etc/x": b"x", **files}), 400, "leads out of it"),
    "absolute": (lambda files: tar_of({"/../etc/x": b"x", **files}), 400, "leads out of it"),
    "link": (lambda files: link("blobs", "/etc"), 400, "neither a file nor a directory"),
    "platform": (lambda files: other_platform(), 404, "only for: linux/s390x, linux/riscv64"),
    "image": (lambda files: an_image(), 400, "not a plugin but an image"),
}


def wrong(name: str, data: bytes) -> bytes:
    return data[:-1] + b"!" if len(data) > 100_000 else data


def without_largest(files: dict[str, bytes]) -> dict[str, bytes]:
    largest = max(files, key=lambda name: len(files[name]))
    return {name: data for name, data in files.items() if name != largest}


@pytest.fixture(scope="module")
def archive(house: EngineProcess) -> dict[str, bytes]:
    house.create("b:1", None, more=os.urandom(400_000))
    files = files_of(save(house, "b:1"))
    house.remove("b:1")
    return files


@pytest.mark.parametrize("kind", BAD)
def test_d09_a_bad_archive_is_refused_in_words_and_leaves_nothing(
    house: EngineProcess, archive: dict[str, bytes], kind: str
) -> None:
    make, status, words = BAD[kind]
    with pytest.raises(Refused) as caught:
        load(house, make(archive))
    assert (caught.value.status, words in caught.value.message) == (status, True), caught.value
    nothing_left(house)


def test_d09_of_an_archive_with_a_name_that_is_taken_nothing_is_loaded(house: EngineProcess) -> None:
    house.create("a:1")
    house.create("b:1", config(description="saved"))
    both = save(house, "a:1", "b:1")
    house.remove("a:1")
    house.remove("b:1")
    house.create("b:1", config(description="another"))
    with pytest.raises(Refused, match="409: plugin b:1 already exists"):
        load(house, both)
    assert [plugin["Name"] for plugin in house.plugins()] == ["b:1"]
    with pytest.raises(Refused, match="400: cannot load 2 plugins as x"):
        load(house, both, "x")
    with pytest.raises(Refused, match="400: cannot save nothing"):
        save(house)
    with pytest.raises(Refused, match="404"):
        save(house, "b:1", "nope")


# of images


def create_from(house: EngineProcess, name: str, body: bytes, remote: str = "") -> Any:
    query = f"?name={quote(name, safe='')}&remote={quote(remote, safe='')}"
    status, raw = house.request(
        "POST", f"/moorage/v1/create{query}", body, headers={"Content-Type": "application/x-tar"}
    )
    last = json.loads(raw.splitlines()[-1])
    if status != 200 or "error" in last:
        raise Refused(status, last.get("error") or last.get("message"))
    return last["aux"]


@pytest.mark.parametrize("kind", ["gzip", "gzip members", "plain"])
def test_d04_a_plugin_is_made_of_an_image_and_a_config(house: EngineProcess, registry: Served, kind: str) -> None:
    layout = Layout()
    layers = [layer_tar({"actor": (actor(), 0o755)}), layer_tar({"more": (kind.encode(), 0o644)})]
    image = layout.image(layers, kind)
    layout.list(image)
    made = create_from(house, "made:1", layout.tar(config_json=json.dumps(config()).encode()))
    assert house.more("made:1")["Digest"] == made["Digest"]
    assert house.inspect("made:1")["Config"]["rootfs"]["diff_ids"] == [digest_of(each) for each in layers]
    tag = kind.replace(" ", "-")
    name = f"{registry.host}/t/of-image:{tag}"
    push(house, "made:1", f"?to={quote(name, safe='')}")
    document = json.loads(fetch(registry, f"t/of-image/manifests/{tag}")[0])
    assert document["mediaType"] == SCHEMA2
    for each in document["layers"]:
        assert each["mediaType"] == "application/vnd.docker.image.rootfs.diff.tar.gzip"
        assert gzip.decompress(fetch(registry, f"t/of-image/blobs/{each['digest']}")[0]) in layers
    house.enable("made:1")
    house.disable("made:1")
    prune(house)  # what is the image's alone is left to the next collection
    assert usage(house)["UnreferencedBytes"] == 0


def test_d04_a_plugin_is_made_of_an_image_in_a_registry(house: EngineProcess, registry: Served) -> None:
    layout = Layout()
    target = layout.image([layer_tar({"actor": (actor(), 0o755)})])
    upload(registry, "t/image", "1", layout, target)
    body = tar_of({"config.json": json.dumps(config()).encode()})
    create_from(house, "made:2", body, f"{registry.host}/t/image:1")
    house.enable("made:2")
    house.disable("made:2")
    with pytest.raises(Refused, match="409"):
        create_from(house, "made:2", body, f"{registry.host}/t/image:1")
    with pytest.raises(Refused, match=r"not found|unknown"):
        create_from(house, "made:3", body, f"{registry.host}/t/nope:1")


def upload(registry: Served, path: str, tag: str, layout: Layout, target: dict[str, Any]) -> None:
    """Push blobs and a manifest to a registry without any of our code."""
    base = f"http://{registry.host}/v2/{path}"
    for digest, data in layout.blobs.items():
        if digest == target["digest"]:
            continue
        started = urllib.request.urlopen(
            urllib.request.Request(f"{base}/blobs/uploads/", method="POST"), timeout=limit(20)
        )
        workspace = started.headers["Location"]
        send(f"{workspace}{'&' if '?' in workspace else '?'}digest={digest}", data, "application/octet-stream")
    send(f"{base}/manifests/{tag}", layout.blobs[target["digest"]], target["mediaType"])


def send(url: str, data: bytes, media_type: str) -> None:
    manifest_request = urllib.request.Request(url, data, {"Content-Type": media_type}, method="PUT")
    urllib.request.urlopen(manifest_request, timeout=limit(20)).close()


def an_image_with(kind: str = "gzip", **how: Any) -> bytes:
    layout = Layout()
    layout.list(layout.image([layer_tar({"actor": (b"x", 0o755)})], kind, **how))
    return layout.tar(config_json=json.dumps(config()).encode())


def a_plugin_again() -> bytes:
    layout = Layout()
    layout.list(layout.plugin(config(), [layer_tar({"x": (b"x", 0o644)})]))
    return layout.tar(config_json=json.dumps(config()).encode())


NO_IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "no config": (lambda: tar_of(files_of(other_platform())), "there is no config.json beside the image"),
    "wrong config": (lambda: tar_of({**files_of(an_image_with()), "config.json": b'{"entrypoint": 1}'}), "entrypoint"),
    "no image": (lambda: tar_of({"config.json": json.dumps(config()).encode()}), "it has no index.json"),
    "zstd": (lambda: an_image_with("zstd"), "skopeo copy --dest-compress-format gzip"),
    "other layers": (lambda: an_image_with(promised=[b"others"]), "its config promises"),
    "a plugin": (a_plugin_again, "it is one already; install or load it"),
    "damaged": (lambda: an_image_with()[:3000], "it ends in the middle of"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_d04_what_is_no_image_is_refused_in_words_and_leaves_nothing(house: EngineProcess, kind: str) -> None:
    make, words = NO_IMAGES[kind]
    with pytest.raises(Refused) as caught:
        create_from(house, "made:1", make())
    assert words in caught.value.message, caught.value
    nothing_left(house)


# a machine as a file has it


def moorage(house: EngineProcess, *words: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60))
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def test_d09_apply_reaches_the_state_of_a_file_and_then_does_nothing(
    house: EngineProcess, registry: Served, tmp_path: Path
) -> None:
    env = [{"name": "A", "value": "0", "settable": ["value"]}, {"name": "T", "settable": ["value"]}]
    for tag in ("1", "2"):
        house.create("x:1", config(description=tag, env=env, network={"type": "host"}))
        push(house, "x:1", f"?to={quote(f'{registry.host}/t/applied:{tag}', safe='')}")
        house.remove("x:1")
    house.create("other:1")
    file = tmp_path / "plugins.yaml"

    def write(text: str) -> None:
        file.write_text(text.replace("REGISTRY", registry.host))

    (tmp_path / "token").write_text("s3cr3t\n")
    write(
        "plugins:\n- reference: REGISTRY/t/applied:1\n  name: p\n  settings: {A: 1}\n  secrets: {T: token}\n"
        "  policy: {restart: on-failure, max: 4}\n"
    )
    said = moorage(house, "apply", "-f", str(file), "--dry-run", status=1)
    assert "plugin p:latest requests network: host, and the file grants something else" in said
    said = moorage(house, "apply", "-f", str(file), status=1)
    assert f"{file}:2: plugins[0]: plugin p:latest requests network: host, and the file grants something else" in said
    assert [plugin["Name"] for plugin in house.plugins()] == ["other:1"]
    write(file.read_text() + "  privileges:\n  - {name: network, value: [host]}\n")
    said = moorage(house, "apply", "-f", str(file), "--dry-run")
    assert said.splitlines()[:3] == ["+ p:latest", f"    install {registry.host}/t/applied:1", '    A: "1"']
    assert [plugin["Name"] for plugin in house.plugins()] == ["other:1"]
    moorage(house, "apply", "-f", str(file))
    assert {"A=1", "T=s3cr3t"} <= set(house.call("p", "env").splitlines())
    assert {"Restarts": "on-failure", "Most": 4, "StopTimeout": None}.items() <= house.more("p")["Policy"].items()
    pid = house.more("p")["Pid"]
    assert moorage(house, "apply", "-f", str(file)) == "= p:latest\n"
    assert house.more("p")["Pid"] == pid  # nothing was touched
    write(file.read_text().replace("applied:1", "applied:2").replace("A: 1", "A: 2") + "others: remove\n")
    lines = [json.loads(line) for line in moorage(house, "--json", "apply", "-f", str(file)).splitlines()]
    assert [(each["Name"], each["Change"], each["Done"]) for each in lines] == [
        ("other:1", "remove", True),
        ("p:latest", "change", True),
    ]
    (found,) = house.plugins()
    assert (found["Enabled"], found["Config"]["Description"]) == (True, "2")
    assert {"A=2", "T=s3cr3t"} <= set(house.call("p", "env").splitlines())
    write("plugins: []\nothers: remove")
    moorage(house, "apply", "-f", str(file))
    assert house.plugins() == []
