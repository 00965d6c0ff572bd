"""Manifests and indexes, read: what is for this machine, and what is a plugin."""

import json
from typing import Any

import pytest

from moorage import errors
from moorage.oci.index import is_index, select_entry
from moorage.oci.manifest import Manifest, RawManifest, check_plugin, parse_manifest
from moorage.oci.media_types import LAYERS
from moorage.oci.platforms import Platform

pytestmark = pytest.mark.quick

INDEX = "application/vnd.oci.image.index.v1+json"
SCHEMA2 = "application/vnd.docker.distribution.manifest.v2+json"
PLUGIN = "application/vnd.docker.plugin.v1+json"
GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
AMD64, ARM64, ARM = Platform("linux", "amd64"), Platform("linux", "arm64"), Platform("linux", "arm", "v7")


def digest(letter: str) -> str:
    return f"sha256:{letter * 64}"


def manifest(document: Any, media_type: str = INDEX) -> RawManifest:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return RawManifest(data, media_type, digest("0"))


def entry(letter: str, platform: str = "", **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": SCHEMA2, "digest": digest(letter), "size": 10, **fields}
    if platform:
        made["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
    return made


def index(*entries: dict[str, Any]) -> RawManifest:
    return manifest({"schemaVersion": 2, "manifests": entries})


@pytest.mark.parametrize(
    ("host", "letter"), [(AMD64, "a"), (ARM64, "b"), (ARM, "d"), (Platform("linux", "arm", "v6"), "c")], ids=str
)
def test_d03_case_026_the_entry_that_fits_best_is_taken(host: Platform, letter: str) -> None:
    found = index(
        entry("e", "unknown/unknown"),
        entry("f", "linux/amd64", annotations={"vnd.docker.reference.type": "attestation-manifest"}),
        entry("a", "linux/amd64"),
        entry("b", "linux/arm64/v8"),
        entry("c", "linux/arm/v6"),
        entry("d", "linux/arm/v7"),
    )
    assert select_entry(found, "x", host) == digest(letter)


def test_d03_an_older_variant_does_and_a_newer_one_does_not() -> None:
    assert select_entry(index(entry("a", "linux/arm/v5"), entry("b", "linux/arm/v6")), "x", ARM) == digest("b")
    with pytest.raises(errors.NotFound, match=r"no package for linux/arm/v7, only for: linux/arm/v8"):
        select_entry(index(entry("a", "linux/arm/v8")), "x", ARM)


def test_d03_an_entry_that_does_not_say_for_what_it_is_comes_last() -> None:
    assert select_entry(index(entry("a"), entry("b", "linux/amd64")), "x", AMD64) == digest("b")
    assert select_entry(index(entry("c", "linux/s390x"), entry("a")), "x", AMD64) == digest("a")


def test_d03_case_026_without_a_fitting_entry_it_says_what_there_is() -> None:
    found = index(entry("a", "linux/s390x"), entry("b", "windows/amd64"), entry("c", "unknown/unknown"))
    with pytest.raises(
        errors.NotFound, match=r"cannot use x: .* for linux/amd64, only for: linux/s390x, windows/amd64"
    ):
        select_entry(found, "x", AMD64)
    with pytest.raises(errors.NotFound, match=r"only for: none"):
        select_entry(index(), "x", AMD64)


def test_an_index_is_recognized_by_its_media_type() -> None:
    assert is_index(index())
    assert not is_index(manifest({}, SCHEMA2))


def read_plugin(raw: RawManifest) -> Manifest:
    return check_plugin(parse_manifest(raw, "cannot use x: its manifest"), "x")


def plugin(**fields: Any) -> dict[str, Any]:
    config = {"mediaType": PLUGIN, "digest": digest("c"), "size": 5}
    layers = [{"mediaType": GZIP, "digest": digest("1"), "size": 7}]
    return {"schemaVersion": 2, "config": config, "layers": layers, **fields}


def test_d03_a_manifest_has_its_config_and_its_layers_in_order() -> None:
    layers = [{"mediaType": each, "digest": digest("1"), "size": 7} for each in sorted(LAYERS)]
    found = read_plugin(manifest(plugin(layers=layers), SCHEMA2))
    assert (found.config.digest, found.config.size_bytes) == (digest("c"), 5)
    assert [each.media_type for each in found.layers] == sorted(LAYERS)
    assert (found.descriptor.media_type, found.descriptor.digest) == (SCHEMA2, digest("0"))
    assert found.descriptor.size_bytes == len(found.data)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"[]", "its manifest cannot be read"),
        (b"{", "its manifest cannot be read"),
        (plugin(config={"digest": digest("c"), "size": 5}), "it is not a plugin .*unknown"),
        (
            plugin(config={"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("c"), "size": 5}),
            "it is not a plugin but an image .*oci.image.config",
        ),
        (plugin(config={"mediaType": PLUGIN, "digest": "../x", "size": 5}), "as a digest"),
        (plugin(config={"mediaType": PLUGIN, "digest": digest("c"), "size": 1 << 21}), "its config has more than"),
        (plugin(layers=[{"mediaType": "x/y", "digest": digest("1"), "size": 7}]), "a layer of type x/y"),
        (plugin(layers=[{"mediaType": GZIP, "digest": digest("1"), "size": -7}]), "cannot have -7 bytes"),
        (plugin(layers=[]), "it has 0 layers"),
        (plugin(layers=[{"mediaType": GZIP, "digest": digest("1"), "size": 7}] * 128), "it has 128 layers"),
    ],
)
def test_case_066_what_is_no_plugin_is_refused(document: Any, text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        read_plugin(manifest(document, SCHEMA2))
