"""What a plugin says of itself, compared with its config."""

import re

import pytest

from moorage.plugins.activation import find_mismatch


@pytest.mark.parametrize(
    ("types", "implements", "words"),
    [
        (["docker.volumedriver/1.0"], ["LogDriver"], "its config says volumedriver, but .* says LogDriver;"),
        (["docker.volumedriver/1.0", "docker.authz/1.0"], ["VolumeDriver"], "its config says authz, but"),
        (["a.b.networkdriver/2"], ["NetworkDriver", "IpamDriver"], ""),
        (["docker.VolumeDriver/1.0"], ["volumedriver"], ""),
        (["docker.volumedriver/1.0"], [], ""),
        (["docker.volumedriver/1.0"], None, ""),
        (["docker.volumedriver/1.0"], [7, None], ""),
        ([], ["VolumeDriver"], ""),
        (["docker./1.0", ""], ["VolumeDriver"], ""),
        (["example.test/1.0"], ["VolumeDriver"], ""),
    ],
)
def test_l01_a_mismatch_is_named(types: list[str], implements: list[object] | None, words: str) -> None:
    found = find_mismatch(types, implements)
    assert bool(found) is bool(words)
    assert re.search(words, found)
