"""host/directory_tree.py: what is opened, measured and removed beneath a directory, and what is refused. Row S02."""

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from moorage.host.directory_tree import (
    Directory,
    open_beneath,
    read_below,
    remove_directories,
    remove_tree_now,
    tree_bytes,
)

pytestmark = pytest.mark.quick


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Directory]:
    with Directory.open(tmp_path) as made:
        yield made


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory to nest others in; it goes whatever the test did, because pytest's own removal is recursive."""
    made = tmp_path / "deep"
    made.mkdir()
    yield made
    subprocess.run(["rm", "-rf", made], check=True)


def refused(top: Directory, path: str) -> int:
    try:
        os.close(open_beneath(top.fileno(), path, os.O_RDONLY))
    except OSError as error:
        return error.errno or 0
    raise AssertionError(f"{path} was opened")


def test_s02_a_path_never_leads_out_of_its_directory(tmp_path: Path, top: Directory) -> None:
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "up").symlink_to("..")
    (tmp_path / "inner" / "file").write_text("x")
    assert refused(top, "../etc") == errno.EXDEV
    assert refused(top, "/etc") == errno.EXDEV
    assert refused(top, "inner/../../etc") == errno.EXDEV
    assert refused(top, "link") == errno.ELOOP
    assert refused(top, "link/passwd") == errno.ELOOP
    assert refused(top, "inner/up/inner/file") == errno.ELOOP
    os.close(open_beneath(top.fileno(), "inner/file", os.O_RDONLY))


def test_s02_a_mount_point_is_refused_unless_it_is_allowed() -> None:
    root = os.open("/", os.O_PATH)
    try:
        with pytest.raises(OSError, match="cross-device"):
            open_beneath(root, "proc/version", os.O_RDONLY)
        os.close(open_beneath(root, "proc/version", os.O_RDONLY, crosses_mounts=True))
    finally:
        os.close(root)


def test_s02_a_new_directory_has_its_mode_and_owner_whatever_the_umask(tmp_path: Path, top: Directory) -> None:
    before = os.umask(0o777)
    try:
        top.make_directory("new", mode=0o751).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o751
    with pytest.raises(FileExistsError):
        top.make_directory("new", mode=0o700)
    top.make_directory("new", mode=0o700, exist_ok=True).close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_s02_a_link_instead_of_a_directory_is_not_taken_for_one(tmp_path: Path, top: Directory) -> None:
    (tmp_path / "victim").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic links"):
        top.make_directory("link", mode=0o700, exist_ok=True)
    assert stat.S_IMODE((tmp_path / "victim").stat().st_mode) == 0o755
    assert stat.S_ISLNK(top.status("link").st_mode)  # type: ignore[union-attr]
    assert top.status("link/x") is None
    assert top.status("nothing") is None


def test_s09_a_tree_is_removed_with_everything_in_it_and_nothing_else(tmp_path: Path, top: Directory) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    tree = tmp_path / "tree"
    for index in range(30):
        below = tree / f"a{index}" / "b" / "c"
        below.mkdir(parents=True)
        (below / "file").write_text("x")
        (below / "link").symlink_to(victim)
        (below / "hard").hardlink_to(below / "file")
        os.mkfifo(below / "fifo")
    (tree / "locked").mkdir()
    (tree / "locked" / "file").write_text("x")
    (tree / "locked").chmod(0)
    top.remove("tree")
    assert not tree.exists()
    assert (victim / "precious").exists()
    top.remove("tree")
    (tmp_path / "link").symlink_to(victim)
    top.remove("link")
    assert (victim / "precious").exists()


def test_s09_depth_and_width_cost_no_descriptors(deep: Path) -> None:
    """Deeper than a path may be long, deeper than Python may recurse, wider than descriptors may be open."""
    tree = deep / "tree"
    tree.mkdir()
    current = os.open(tree, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d" * 100, dir_fd=current)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)
    for index in range(2000):
        (tree / f"w{index}").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    assert tree_bytes(tree) >= 0
    remove_tree_now(tree)
    assert not tree.exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_s09_what_is_moved_meanwhile_stops_the_removal_and_is_not_followed(tmp_path: Path) -> None:
    """A directory is moved out of the tree while it is emptied: nothing outside the tree may be removed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    for _ in range(20):
        tree = tmp_path / "tree"
        for index in range(40):
            (tree / "a" / "b" / f"c{index}").mkdir(parents=True)
        mover = threading.Thread(target=lambda: _move(tmp_path / "tree" / "a" / "b", outside / "b"))
        mover.start()
        with suppress(OSError):  # ESTALE or ENOTEMPTY, where the move came in between
            remove_tree_now(tree)
        mover.join()
        assert (outside / "precious").exists()
        for left in (tree, outside / "b"):
            remove_tree_now(left)


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        pass


def test_bytes_are_counted_once_and_only_below(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 100_000)
    alone = tree_bytes(tree)
    assert alone >= 100_000
    (tree / "hard").hardlink_to(tree / "file")
    (tree / "link").symlink_to(tmp_path)
    assert tree_bytes(tree) < alone + 50_000
    assert tree_bytes(tmp_path / "nothing") == 0
    assert tree_bytes(tree / "file") == 0


def test_s09_nested_control_groups_are_read_and_removed(deep: Path) -> None:
    """As a plugin makes them that was granted its control groups; plain directories do as well here."""
    top = deep / "group"
    top.mkdir()
    current = os.open(top, os.O_RDONLY)
    for index in range(1500):
        with open(os.open("procs", os.O_CREAT | os.O_WRONLY, dir_fd=current), "w") as file:
            file.write(f"{index}\n")
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)
    assert {int(text) for text in read_below(top, "procs")} == set(range(1500))
    assert list(read_below(deep / "nothing", "procs")) == []
    remove_directories(top / "nothing")
    shallow = deep / "shallow"
    (shallow / "a" / "b").mkdir(parents=True)
    remove_directories(shallow)
    assert not shallow.exists()
