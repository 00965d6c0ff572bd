"""What ``mount -t moorage`` says: driver and volume, and which options are the bind's."""

import pytest

from moorage import errors
from moorage.cli.volumes.mount_helper import bind_options, owner_of, split_source

pytestmark = pytest.mark.quick

DRIVERS = ("vieux/sshfs:latest", "vieux/sshfs:next", "local.example:5000/a/b:1", "d:latest")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("d/data", ("d", "data")),
        ("d:latest/data", ("d:latest", "data")),
        ("vieux/sshfs/data", ("vieux/sshfs", "data")),
        ("vieux/sshfs:next/data", ("vieux/sshfs:next", "data")),
        ("vieux/sshfs/data/sub", ("vieux/sshfs", "data/sub")),
        ("local.example:5000/a/b:1/x", ("local.example:5000/a/b:1", "x")),
    ],
)
def test_v03_the_longest_driver_that_fits_is_meant(source: str, found: tuple[str, str]) -> None:
    assert split_source(source, DRIVERS) == found


@pytest.mark.parametrize(
    ("source", "kind"),
    [("data", errors.Invalid), ("d/", errors.Invalid), ("", errors.Invalid), ("other/data", errors.NotFound)],
)
def test_v03_what_names_no_driver_and_volume_is_refused(source: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="cannot mount"):
        split_source(source, DRIVERS)


def test_v03_a_driver_that_does_not_exist_is_reported_with_those_that_do() -> None:
    with pytest.raises(errors.NotFound, match="cannot mount sshf/data: it names no volume driver; known are: a:1, b:2"):
        split_source("sshf/data", ("b:2", "a:1"))
    with pytest.raises(errors.NotFound, match="known are: none"):
        split_source("sshf/data", ())


@pytest.mark.parametrize(
    ("options", "passed", "host"),
    [
        ("", [], ""),
        ("rw,_netdev,nofail,x-systemd.requires=moorage.service", ["rw"], ""),
        ("_netdev,x-systemd.after=moorage.service", [], ""),
        ("ro,nosuid,host=unix:///run/x.sock,defaults", ["ro", "nosuid"], "unix:///run/x.sock"),
    ],
)
def test_v03_options_of_mounts_are_passed_on_and_those_of_fstab_ignored(
    options: str, passed: list[str], host: str
) -> None:
    assert bind_options(options) == (["helper=moorage", *passed], host)


def test_v03_an_option_of_the_volume_is_refused() -> None:
    with pytest.raises(errors.Invalid, match="unknown option sshcmd=me@host:/"):
        bind_options("ro,sshcmd=me@host:/")


@pytest.mark.parametrize(
    ("path", "owner"), [("/mnt/x", "/mnt/x"), ("/mnt/a b", "/mnt/a%20b"), ("/é%\n", "/%C3%A9%25%0A")]
)
def test_v03_an_owner_is_the_mount_point_as_printable_text(path: str, owner: str) -> None:
    assert owner_of(path) == owner
