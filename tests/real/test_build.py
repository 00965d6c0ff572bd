"""``moorage build``: reproducible packages on bases of each kind, several platforms as one tag, and they install."""

import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import EngineProcess, actor, config, engine, root_of
from support.foreground import environment
from support.limits import limit
from support.registries import Served, serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry", "skopeo")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve_registry(tmp_path_factory.mktemp("registries") / "plain") as served:
        yield served


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A directory whose program is on the base: only its config and a file are the author's."""
    directory = tmp_path / "my-plugin"
    (directory / "rootfs/etc").mkdir(parents=True)
    (directory / "rootfs/etc/own").write_text("author's\n")
    (directory / "rootfs/etc/__pycache__").mkdir()
    (directory / "rootfs/etc/__pycache__/x.pyc").touch()
    (directory / "config.json").write_text(json.dumps(config()))
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A root file system with the program, a hard link, a link, another owner, and a socket that cannot be packed."""
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "actor").write_bytes(actor())
    (root / "actor").chmod(0o4755)
    os.link(root / "actor", root / "usr/bin/actor")
    (root / "link").symlink_to("usr/bin")
    (root / "owned").mkdir()
    os.chown(root / "owned", 1000, 1000)
    os.setxattr(root / "actor", "user.note", b"x")
    os.utime(root / "owned", (1_000_000_000, 1_000_000_000))
    return root


def moorage(*words: object, house: EngineProcess | None = None, **more: str) -> str:
    """The output of the command, which succeeds."""
    command = [sys.executable, "-m", "moorage", *(["--host", f"unix://{house.socket}"] if house else [])]
    done = subprocess.run(
        [*command, *map(str, words)], env=environment(more), capture_output=True, text=True, timeout=limit(120)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refused(*words: object, **more: str) -> str:
    """What the command that fails prints."""
    command = [sys.executable, "-m", "moorage", *map(str, words)]
    done = subprocess.run(command, env=environment(more), capture_output=True, text=True, timeout=limit(60))
    assert done.returncode in (1, 2)
    return done.stderr


def blobs(archive: Path) -> dict[str, bytes]:
    """The files of an archive, each blob with the content that its name states."""
    with tarfile.open(archive) as tar:
        found = {each.name: tar.extractfile(each).read() for each in tar if each.isfile()}  # type: ignore[union-attr]
    for name, data in found.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(data).hexdigest() == name.rpartition("/")[2]
    return found


def blob(found: dict[str, bytes], digest: str) -> Any:
    return json.loads(found[f"blobs/sha256/{digest.partition(':')[2]}"])


def layers(archive: Path) -> list[dict[str, tarfile.TarInfo]]:
    """The entries of each layer of an archive with one package."""
    found = blobs(archive)
    (entry,) = json.loads(found["index.json"])["manifests"]
    made = []
    for layer in blob(found, entry["digest"])["layers"]:
        with tarfile.open(fileobj=io.BytesIO(found[f"blobs/sha256/{layer['digest'].partition(':')[2]}"])) as tar:
            made.append({each.name: each for each in tar})
    return made


def runs(house: EngineProcess, name: str) -> Path:
    """Enable a plugin that is created from a base; its root file system, while it runs."""
    if not house.inspect(name)["Enabled"]:
        house.enable(name)
    return root_of(house, name)


def test_a_plugin_on_a_root_file_system_is_loaded_and_runs(
    plugin: Path, base: Path, tmp_path: Path, house: EngineProcess
) -> None:
    moorage("build", plugin, "--base", base, "-o", tmp_path / "a.tar", "--name", "on-root:1.0")
    below, own = layers(tmp_path / "a.tar")
    assert (below["owned"].uid, below["owned"].mtime) == (1000, 1_000_000_000)
    assert {below["actor"].type, below["usr/bin/actor"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    assert below["actor"].mode == 0o4755
    assert below["actor"].pax_headers == {"SCHILY.xattr.user.note": "x"}
    assert sorted(own) == [".", "etc", "etc/own"]
    assert {(each.uid, each.gid, each.mtime) for each in own.values()} == {(0, 0, 0)}
    moorage("load", "--grant-all-permissions", "-i", tmp_path / "a.tar", house=house)
    root = runs(house, "on-root:1.0")
    assert (root / "etc/own").read_text() == "author's\n"
    assert (root / "link").readlink() == Path("usr/bin")
    house.remove("on-root:1.0", force=True)


def test_the_same_files_give_the_same_bytes(plugin: Path, base: Path, tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(plugin, copy / "it", symlinks=True)
        if number:  # another user, another day, another umask
            os.chown(copy / "it/rootfs/etc/own", 1000, 1000)
            (copy / "it/rootfs/etc/own").chmod(0o664)
            os.utime(copy / "it/rootfs/etc/own", (1, 1))
        digests.append(moorage("build", copy / "it", "--base", base, "-o", tmp_path / f"{number}.tar"))
    assert digests[0] == digests[1]
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()
    later = moorage("build", plugin, "--base", base, "-o", tmp_path / "2.tar", SOURCE_DATE_EPOCH="1700000000")
    assert later != digests[0]
    (_, own) = layers(tmp_path / "2.tar")
    assert {each.mtime for each in own.values()} == {1_700_000_000}


def image(directory: Path, base: Path, platforms: list[str], *, compressed: bool = True) -> None:
    """An image for these platforms with the files of a root file system, as an OCI layout in a directory."""
    (directory / "blobs/sha256").mkdir(parents=True)

    def add(data: bytes, media_type: str, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (directory / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    entries = []
    for platform in platforms:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.add(base, ".")
            note = tarfile.TarInfo("platform")
            note.size = len(platform)
            tar.addfile(note, io.BytesIO(platform.encode()))
        plain = stream.getvalue()
        system, architecture = platform.split("/")
        document = {
            "os": system,
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
        }
        if compressed:
            layer = add(gzip.compress(plain, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
        else:
            layer = add(plain, "application/vnd.oci.image.layer.v1.tar")
        settings = add(json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json")
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": settings, "layers": [layer]}
        suits = {"os": system, "architecture": architecture}
        entries.append(add(json.dumps(manifest).encode(), kind, platform=suits))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    (directory / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("compressed", [True, False], ids=["gzip", "plain"])
def test_a_plugin_on_an_oci_layout_is_loaded_and_runs(
    plugin: Path, base: Path, tmp_path: Path, house: EngineProcess, *, compressed: bool
) -> None:
    image(tmp_path / "layout", base, ["linux/amd64", "linux/arm64"], compressed=compressed)
    moorage("build", plugin, "--base", tmp_path / "layout", "-o", tmp_path / "a.tar", "--name", "on-layout")
    moorage("load", "--grant-all-permissions", "-i", tmp_path / "a.tar", house=house)
    root = runs(house, "on-layout")
    assert (root / "platform").read_text() == "linux/amd64"
    assert (root / "etc/own").exists()
    house.remove("on-layout", force=True)


def test_several_platforms_are_pushed_as_one_tag_on_an_image_of_a_registry(
    plugin: Path, base: Path, tmp_path: Path, house: EngineProcess, registry: Served
) -> None:
    platforms = ["linux/amd64", "linux/arm64"]
    image(tmp_path / "layout", base, platforms)
    _push_layout(tmp_path / "layout", registry)
    target = f"{registry.host}/team/my-plugin:1.0"
    chosen = [word for platform in platforms for word in ("--platform", platform)]
    digest = moorage("build", plugin, "--base", f"{registry.host}/bases/all:1", *chosen, "--push", target)
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{target}"], check=True, capture_output=True
    ).stdout
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == digest
    index = json.loads(raw)
    assert [each["platform"]["architecture"] for each in index["manifests"]] == ["amd64", "arm64"]
    assert len({each["digest"] for each in index["manifests"]}) == 2
    moorage("install", "--grant-all-permissions", target, "--alias", "pulled", house=house)
    assert (runs(house, "pulled") / "platform").read_text() == "linux/amd64"
    house.remove("pulled", force=True)
    # again: nothing is uploaded, and the digest is the same
    assert moorage("build", plugin, "--base", f"{registry.host}/bases/all:1", *chosen, "--push", target) == digest


def _push_layout(layout: Path, registry: Served) -> None:
    """Every manifest of a layout, then its index as bases/all:1."""
    connection = http.client.HTTPConnection("127.0.0.1", registry.port, timeout=limit(30))

    def put(path: str, data: bytes, kind: str, expected: int) -> None:
        connection.request("PUT", path, data, {"Content-Type": kind})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == expected, path

    for each in sorted((layout / "blobs/sha256").iterdir(), key=lambda path: b'"schemaVersion"' in path.read_bytes()):
        data = each.read_bytes()
        try:
            document = json.loads(data)
        except ValueError:
            document = {}
        if "layers" in document:
            put(f"/v2/bases/all/manifests/sha256:{each.name}", data, document["mediaType"], 201)
            continue
        connection.request("POST", "/v2/bases/all/blobs/uploads/")
        answer = connection.getresponse()
        answer.read()
        location = answer.headers["Location"].partition(f"127.0.0.1:{registry.port}")[2]
        put(f"{location}&digest=sha256:{each.name}", data, "application/octet-stream", 201)
    index = (layout / "index.json").read_bytes()
    put("/v2/bases/all/manifests/1", index, json.loads(index)["mediaType"], 201)
    connection.close()


def test_a_base_for_each_platform_and_none_for_the_rest(plugin: Path, base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "actor").write_bytes(b"arm")
    moorage(
        "build", plugin, "--platform", "linux/arm64", "--platform", "linux/amd64",
        "--base", base, "--base", f"linux/arm64={other}", "-o", tmp_path / "a.tar",
    )  # fmt: skip
    found = blobs(tmp_path / "a.tar")
    (entry,) = json.loads(found["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"].endswith("/my-plugin:latest")
    arm, amd = (blob(found, each["digest"]) for each in blob(found, entry["digest"])["manifests"])
    assert arm["layers"][0] != amd["layers"][0]
    assert arm["layers"][1] == amd["layers"][1]
    for each in (arm, amd):
        settings = blob(found, each["config"]["digest"])
        assert len(settings["rootfs"]["diff_ids"]) == 2
        assert settings["entrypoint"] == config()["entrypoint"]


def test_the_kit_is_added_instead_of_the_one_in_the_directory(plugin: Path, tmp_path: Path) -> None:
    old = plugin / "rootfs/plugin/moorage/kit"
    old.mkdir(parents=True)
    (old / "old.py").touch()
    moorage("build", plugin, "--kit", "-o", tmp_path / "a.tar")
    (own,) = layers(tmp_path / "a.tar")
    assert "plugin/moorage/kit/server.py" in own
    assert "plugin/moorage/kit/old.py" not in own
    assert not [name for name in own if "__pycache__" in name]


def test_the_example_of_the_reference_is_built(tmp_path: Path) -> None:
    digest = moorage("build", ROOT / "examples/hello-volume", "-o", tmp_path / "hello-volume.tar")
    assert digest.startswith("sha256:")


def test_what_cannot_be_built_is_refused_with_its_reason(plugin: Path, base: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.tar"
    assert "give -o FILE" in refused("build", plugin)
    assert "no such directory" in refused("build", plugin, "--base", "./nothing", "-o", output)
    assert "two bases" in refused("build", plugin, "--base", base, "--base", base, "-o", output)
    assert "OS/ARCH" in refused("build", plugin, "--platform", "arm64", "-o", output)
    assert "SOURCE_DATE_EPOCH" in refused("build", plugin, "-o", output, SOURCE_DATE_EPOCH="today")
    assert "config.json" in refused("build", tmp_path, "-o", output)
    image(tmp_path / "layout", base, ["linux/s390x"])
    assert "no package for linux/amd64" in refused("build", plugin, "--base", tmp_path / "layout", "-o", output)
    (layer,) = [each for each in (tmp_path / "layout/blobs/sha256").iterdir() if each.stat().st_size > 10_000]
    layer.write_bytes(b"damaged" + layer.read_bytes()[7:])
    words = ["build", plugin, "--platform", "linux/s390x", "--base", tmp_path / "layout", "-o", output]
    assert "sha256:" in refused(*words)
    assert not output.exists()
