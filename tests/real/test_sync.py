"""A package is on the disk when its plugin exists, and no other file system is waited for."""

import errno
from pathlib import Path

import pytest

from support.engines import Refused, engine
from support.system_calls import killed_by, refused

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


def test_d14_a_package_is_stored_without_a_sync_of_every_file_system(tmp_path: Path) -> None:
    with engine(tmp_path, prefix=killed_by("sync")) as made:
        made.create("p")
        made.enable("p")
        made.disable("p")
        made.remove("p")


def test_d14_a_package_that_cannot_be_written_to_the_disk_is_not_installed(tmp_path: Path) -> None:
    with engine(tmp_path, prefix=refused("syncfs", errno.EIO)) as made:
        with pytest.raises(Refused) as failure:
            made.create("p")
        assert failure.value.status == 503
        assert f"cannot write {made.root}/containerd/" in failure.value.message
        assert "to disk: Input/output error" in failure.value.message
        assert made.plugins() == []
