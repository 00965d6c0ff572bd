"""Names that a plugin may be published under."""

from pathlib import Path

import pytest

from moorage import errors
from moorage.engine.consumers.names import make_publication, socket_path
from moorage.proxy.protocol import PublishOptions

pytestmark = pytest.mark.quick

DIRECTORY = Path("/run/docker/plugins")
PLAIN = PublishOptions()


def test_p01_without_a_name_it_is_the_plugins_own_with_its_tag() -> None:
    made = make_publication("vieux/sshfs:latest", (), PLAIN, "", DIRECTORY)
    assert (made.names, made.mode) == (("vieux/sshfs:latest",), 0o600)
    assert socket_path(DIRECTORY, made.names[0]) == "/run/docker/plugins/vieux/sshfs:latest.sock"


def test_p01_each_name_counts_once_and_a_group_may_write() -> None:
    made = make_publication("a:1", ("b", "a/b", "b"), PLAIN, "adm", DIRECTORY)
    assert (made.names, made.group, made.mode) == (("b", "a/b"), "adm", 0o660)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", ".a", "a b", "a\n", "ä", "a\\b", 'a"b'])
def test_p01_a_name_that_is_no_path_below_the_directory_is_refused(name: str) -> None:
    with pytest.raises(errors.Invalid, match="cannot publish a plugin as"):
        make_publication("a:1", (name,), PLAIN, "", DIRECTORY)


@pytest.mark.parametrize("name", ["a.sock", "a.sock/b", "a.spec", "a.json"])
def test_p01_the_suffixes_of_docker_are_no_part_of_a_name(name: str) -> None:
    with pytest.raises(errors.Invalid, match="are no part of a name"):
        make_publication("a:1", (name,), PLAIN, "", DIRECTORY)


def test_p01_a_path_longer_than_that_of_a_socket_is_refused() -> None:
    longest = "n" * (107 - len("/run/docker/plugins/.sock"))
    make_publication("a:1", (longest,), PLAIN, "", DIRECTORY)
    with pytest.raises(errors.Invalid, match="longer than 107 bytes"):
        make_publication("a:1", (longest + "n",), PLAIN, "", DIRECTORY)


@pytest.mark.parametrize(
    "options", [PublishOptions(at_once=0), PublishOptions(time_limits={"VolumeDriver.Get": 0.0})], ids=["none", "zero"]
)
def test_p09_options_out_of_range_are_refused(options: PublishOptions) -> None:
    with pytest.raises(errors.Invalid):
        make_publication("a:1", (), options, "", DIRECTORY)
