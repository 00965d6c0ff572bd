"""containerd is replaced by another version under a running engine."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage.containerd.containerd_process import installed_version, version_numbers
from support import leftovers
from support.engines import EngineProcess, engine, kill

pytestmark = [pytest.mark.real, pytest.mark.long]

PROGRAMS = ("containerd", "containerd-shim-runc-v2")
OTHERS = [Path(each) for each in os.environ.get("MOORAGE_TEST_CONTAINERDS", "").split(":") if each]
"""Directories with other versions of containerd, as docs/development.md says how to build them."""


def installed() -> Path:
    """The directory of this machine's containerd."""
    found = shutil.which("containerd")
    assert found
    return Path(found).parent


def install(directory: Path, source: Path) -> Path:
    """Let the programs in a directory be those of another one."""
    directory.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(source / name)
    return directory


def renamed(directory: Path) -> Path:
    """A copy of this machine's containerd that calls itself another version."""
    directory.mkdir()
    program = (installed() / "containerd").resolve()
    version = installed_version(str(program)).encode()
    other = version[:-1] + (b"1" if version[-1:] != b"1" else b"2")
    (directory / "containerd").write_bytes(program.read_bytes().replace(version, other))
    (directory / "containerd").chmod(0o755)
    (directory / "containerd-shim-runc-v2").symlink_to(installed() / "containerd-shim-runc-v2")
    assert subprocess.check_output([directory / "containerd", "--version"]).split()[2] == other
    return directory


@contextmanager
def engine_on(base: Path, programs: Path) -> Iterator[EngineProcess]:
    """An engine with a plugin, whose containerd is of this directory."""
    with engine(base, prefix=["env", f"PATH={programs}:{os.environ['PATH']}"]) as house:
        house.create("a")
        house.enable("a")
        yield house


def version_of(house: EngineProcess) -> str:
    return str(house.info()["Moorage"]["ContainerdVersion"])


def replace(house: EngineProcess, programs: Path, source: Path) -> None:
    """Install another containerd, and let it be started: the engine shows its version."""
    install(programs, source)
    kill([int((house.exec_root / "containerd/pid").read_text())])
    expected = installed_version(str(source / "containerd"))
    house.wait_until(lambda: version_of(house) == expected and not house.info()["Moorage"]["Problem"], "the other one")


def test_the_version_is_queried_again_after_a_reconnect(tmp_path: Path) -> None:
    programs = install(tmp_path / "programs", installed())
    with engine_on(tmp_path, programs) as house:
        before, pid = version_of(house), house.more("a")["Pid"]
        replace(house, programs, renamed(tmp_path / "renamed"))
        assert version_of(house) != before
        assert house.more("a")["Pid"] == pid


@pytest.mark.skipif(not OTHERS, reason="MOORAGE_TEST_CONTAINERDS names no other versions")
@pytest.mark.parametrize(
    ("before", "after"), list(itertools.permutations([installed(), *OTHERS], 2)), ids=lambda path: path.parent.name
)
def test_plugins_survive_another_version_unless_it_knows_no_new_shims(
    tmp_path: Path, before: Path, after: Path
) -> None:
    programs = install(tmp_path / "programs", before)
    old, new = (version_numbers(installed_version(str(each / "containerd"))) for each in (before, after))
    with engine_on(tmp_path, programs) as house:
        pid = house.more("a")["Pid"]
        replace(house, programs, after)
        if new < (2, 0) <= old:
            house.until_restarted("a", 1)
            assert not leftovers.is_alive(pid)
        else:
            assert house.more("a")["Pid"] == pid
            house.crash("a", 3)
            house.until_restarted("a", 1)
            assert house.more("a")["LastExit"]["Code"] == 3
