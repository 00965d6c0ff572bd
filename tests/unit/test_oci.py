"""The values of the OCI specifications: written once, pure, and the same for all."""

import ast
import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.api import conversion
from moorage.engine.values import EngineInfo
from moorage.oci import media_types
from moorage.oci.descriptor import Descriptor, check_descriptor
from moorage.oci.digest import check_digest, digest_of, is_digest_of, new_hash
from moorage.oci.index import build_index, parse_index, walk_to_manifest
from moorage.oci.limits import INDEX_DEPTH
from moorage.oci.manifest import RawManifest, encode_manifest, media_type_of, parse_manifest
from moorage.oci.platforms import MACHINES, Platform, normalized, platform_of_machine
from moorage.plugins.seccomp import _ARCHITECTURES
from moorage.runs.host_security import HostSecurity

INFO = EngineInfo(*("",) * 7, datetime.now(UTC), "")

pytestmark = pytest.mark.quick

SOURCE = Path(__file__).resolve().parents[2] / "src/moorage"
MODULES = [path for path in SOURCE.rglob("*.py") if "_proto" not in path.parts]
OCI_MODULES = sorted((SOURCE / "oci").glob("*.py"))
MEDIA_TYPE = re.compile(r"application/vnd\.[a-z0-9.+-]+")
OUTSIDE_OCI = ("application/vnd.docker.plugins.v1.2+json", "application/vnd.moorage.exec")
"""Media types of HTTP bodies, which no manifest has."""
SYSTEM = ("os", "pathlib", "socket", "asyncio", "anyio", "subprocess", "io", "tempfile", "shutil", "platform")


def strings_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_each_media_type_is_defined_once_in_the_source() -> None:
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for text in strings_of(path):
            for media_type in MEDIA_TYPE.findall(text):
                found.setdefault(media_type, []).append(path.relative_to(SOURCE).as_posix())
    own = {name: where for name, where in found.items() if name not in OUTSIDE_OCI}
    assert {name: where for name, where in own.items() if where != ["oci/media_types.py"]} == {}
    assert len(own) >= 17
    constants = [getattr(media_types, name) for name in media_types.__all__]
    assert {each for each in constants if isinstance(each, str)} == set(own)


@pytest.mark.parametrize("path", OCI_MODULES, ids=lambda path: path.name)
def test_oci_imports_nothing_of_the_system(path: Path) -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert not {name for name in names if name.partition(".")[0] in SYSTEM}
    own = {name for name in names if name.startswith("moorage")}
    allowed = ("moorage.errors", "moorage._lib.", "moorage.oci.")
    assert {name for name in own if not name.startswith(allowed)} == set()


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_of_the_table_has_one_architecture_everywhere(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    architecture = MACHINES[machine][0]
    assert platform_of_machine(machine).architecture == architecture
    assert conversion.to_version(INFO).arch == architecture
    assert HostSecurity().features().architecture == architecture


def test_the_seccomp_profile_uses_the_names_of_the_table() -> None:
    assert {*_ARCHITECTURES} <= {architecture for architecture, _ in MACHINES.values()}


@pytest.mark.parametrize(
    ("architecture", "variant", "expected"),
    [
        ("arm64", "v8", "linux/arm64"),
        ("aarch64", "", "linux/arm64"),
        ("x86_64", "", "linux/amd64"),
        ("amd64", "v1", "linux/amd64"),
        ("amd64", "v3", "linux/amd64/v3"),
        ("armhf", "", "linux/arm/v7"),
        ("arm", "7", "linux/arm/v7"),
        ("arm", "", "linux/arm"),
        ("i686", "", "linux/386"),
        ("something", "new", "linux/something/new"),
    ],
)
def test_names_of_architectures_are_normalized(architecture: str, variant: str, expected: str) -> None:
    assert str(normalized("linux", architecture, variant)) == expected


def test_a_machine_that_is_not_in_the_table_keeps_its_name() -> None:
    assert platform_of_machine("riscv128") == Platform("linux", "riscv128")
    assert platform_of_machine("mips64").architecture in ("mips64", "mips64le")


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_digests_of_every_algorithm(algorithm: str) -> None:
    digest = digest_of(b"data", algorithm)
    assert digest == f"{algorithm}:{hashlib.new(algorithm, b'data').hexdigest()}"
    assert check_digest(digest) == digest
    assert new_hash(digest).name == algorithm
    assert is_digest_of(digest, b"data")
    assert not is_digest_of(digest, b"date")


@pytest.mark.parametrize(
    "digest", ["", "sha256", "sha256:", "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha512:" + "0" * 64,
               "sha256:" + "G" * 64, "sha256:" + "A" * 64, "../../x", "sha256:" + "0" * 64 + "\n"],
)  # fmt: skip
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(errors.Invalid, match="as a digest"):
        check_digest(digest)


def test_a_manifest_that_was_written_is_read_as_the_same() -> None:
    config = Descriptor(media_types.PLUGIN_CONFIG, digest_of(b"c"), 1)
    layers = [Descriptor(media_types.DOCKER_LAYER_GZIP, digest_of(each), 1) for each in (b"a", b"b", b"a")]
    data = encode_manifest(config, layers)
    raw = RawManifest(data, media_type_of(data), digest_of(data))
    found = parse_manifest(raw, "it")
    assert (found.config, [*found.layers]) == (config, layers)
    assert found.descriptor == Descriptor(media_types.DOCKER_MANIFEST, digest_of(data), len(data))
    assert [each.digest for each in found.blobs] == [config.digest, layers[0].digest, layers[1].digest]


def test_an_index_that_was_written_is_read_as_the_same() -> None:
    entries = [
        Descriptor(media_types.OCI_MANIFEST, digest_of(b"a"), 1, {"a": "b"}, platform=Platform("linux", "arm", "v7")),
        Descriptor(media_types.OCI_MANIFEST, digest_of(b"b"), 2, artifact_type=media_types.SIGSTORE_BUNDLE),
    ]
    raw = build_index(entries)
    assert [*parse_index(raw.data, "it")] == entries
    assert (raw.media_type, raw.digest) == (media_types.OCI_INDEX, digest_of(raw.data))


@pytest.mark.parametrize("size", [-1, 1 << 62])
def test_a_size_that_no_blob_has_is_refused(size: int) -> None:
    with pytest.raises(errors.Invalid, match=rf"it: .* cannot have {size} bytes"):
        check_descriptor(Descriptor("x", digest_of(b""), size), "it")


def test_annotations_and_platforms_of_any_shape_are_read() -> None:
    entry = {
        "digest": "d",
        "size": 1,
        "annotations": {"a": 1, "b": None, "c": "d"},
        "platform": {"os": 1, "architecture": None},
    }
    (found,) = parse_index(json.dumps({"manifests": [entry]}).encode(), "it")
    assert found.annotations == {"c": "d"}
    assert found.platform == Platform("1", "")


@pytest.mark.parametrize("depth", [0, 1, INDEX_DEPTH - 1, INDEX_DEPTH])
def test_the_walk_through_indexes_is_bounded(depth: int) -> None:
    stored: dict[str, RawManifest] = {}
    found = RawManifest(b"{}", media_types.OCI_MANIFEST, digest_of(b"{}"))
    for _ in range(depth):
        stored[found.digest] = found
        found = build_index([found.descriptor])

    async def read(digest: str) -> RawManifest:
        return stored[digest]

    async def walk() -> int:
        return len(await walk_to_manifest(found, read, "x", Platform("linux", "amd64")))

    if depth < INDEX_DEPTH:
        assert anyio.run(walk) == depth + 1
    else:
        with pytest.raises(errors.Invalid, match="index of indexes of indexes"):
            anyio.run(walk)
