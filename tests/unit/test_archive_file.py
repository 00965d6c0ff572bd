"""What ``save -o`` names may be no file, or lead to one elsewhere."""

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage import errors
from moorage.cli.archives import write_archive

PIECES = (b"one", b"two")


def test_case_216_a_named_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert not write_archive(pipe, PIECES)
    reader.join()
    assert seen == [b"onetwo"]
    assert stat.S_ISFIFO(pipe.lstat().st_mode)


def test_case_216_a_device_stays_one_and_its_refusal_is_named(tmp_path: Path) -> None:
    device = tmp_path / "full"
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    with pytest.raises(errors.Invalid, match=f"cannot write {device}: No space left on device"):
        write_archive(device, PIECES)
    assert stat.S_ISCHR(device.lstat().st_mode)
    assert os.listdir(tmp_path) == ["full"]


def test_case_216_of_a_link_the_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere/file")
    for _ in range(2):  # it leads nowhere at first
        assert write_archive(link, PIECES)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere/file").read_bytes() == b"onetwo"
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


@pytest.mark.parametrize("name", ["stdout", "fd/1"])
def test_case_216_standard_output_by_its_path_is_written_into(tmp_path: Path, name: str) -> None:
    links = tmp_path / "dev"
    links.mkdir()
    (links / "stdout").symlink_to("/proc/self/fd/1")
    (links / "fd").symlink_to("/proc/self/fd")
    program = (
        "from pathlib import Path; from moorage.cli.archives import write_archive;"
        f"write_archive(Path({str(links / name)!r}), {PIECES})"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"onetwo"
    assert (links / "stdout").is_symlink()


def test_case_201_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    assert write_archive(path, PIECES)
    assert path.read_bytes() == b"onetwo"


def test_case_216_what_fails_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    def fails() -> Iterator[bytes]:
        yield b"one"
        raise errors.Unavailable("lost moorage")

    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(errors.Unavailable):
        write_archive(path, fails())
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(errors.Invalid, match=r"cannot write .*: No such file or directory"):
        write_archive(tmp_path / "missing" / "file", PIECES)
    with pytest.raises(errors.Invalid, match=r"cannot write .*: Is a directory"):
        write_archive(tmp_path, PIECES)
