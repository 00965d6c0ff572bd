"""A root file system whose /dev is a link: a runtime makes links of its own in /dev before the root is its own."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from support.engines import EngineProcess, Refused, config, package, root_of
from support.foreground import wait_until

REFUSED = "cannot run the plugin: /dev in its root file system is a symbolic link"


def linked(target: str) -> bytes:
    """The package of an actor whose /dev is this link."""
    stream = io.BytesIO(package(config()))
    with tarfile.open(fileobj=stream, mode="a") as archive:
        link = tarfile.TarInfo("rootfs/dev")
        link.type, link.linkname = tarfile.SYMTYPE, target
        archive.addfile(link)
    return stream.getvalue()


@pytest.mark.usefixtures("nothing_else")
@pytest.mark.parametrize("how", ["absolute", "relative", "within the root"])
def test_a_package_whose_dev_is_a_link_is_not_run(house: EngineProcess, tmp_path: Path, how: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "ptmx").write_text("precious")
    upwards = "../" * 20 + str(victim).lstrip("/")
    body = linked({"absolute": str(victim), "relative": upwards, "within the root": "other"}[how])
    house.request_json("POST", "/plugins/create?name=p", body, headers={"Content-Type": "application/x-tar"})
    with pytest.raises(Refused) as caught:
        house.enable("p")
    assert REFUSED in caught.value.message
    assert os.listdir(victim) == ["ptmx"]
    assert (victim / "ptmx").read_text() == "precious"


@pytest.mark.usefixtures("nothing_else")
def test_a_plugin_that_replaces_its_dev_is_not_started_again(house: EngineProcess, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    house.create("p", config())
    house.enable("p")
    dev = root_of(house, "p") / "dev"  # as a plugin with CAP_SYS_ADMIN can replace it, once it has unmounted its own
    dev.rmdir()
    dev.symlink_to(victim)
    house.crash("p", 3)
    wait_until(lambda: REFUSED in (house.more("p")["LastExit"] or {}).get("Error", ""), "the start is refused")
    assert os.listdir(victim) == []
