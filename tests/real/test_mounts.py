"""The mounts of `host/mounts.py`, made by the real kernel in a mount namespace of their own."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.foreground import Machine, environment
from support.limits import limit

pytestmark = pytest.mark.real

ODD = "a b,c:d\\e\tf\ng"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as made:
        made.inside("/var/tmp/w").mkdir()
        yield made
        made.do("rm -rf /var/tmp/w /run/mount")


def run(machine: Machine, program: str, *words: str) -> str:
    """Run Python on the machine, with our mounts imported; what it prints."""
    begin = "import sys; from pathlib import Path; from moorage import errors; from moorage.host.mounts import *\n"
    done = subprocess.run(
        machine.command(sys.executable, "-c", begin + program, *words),
        env=environment(None),
        capture_output=True,
        text=True,
        check=False,
        timeout=limit(30),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OVERLAY = """
work = Path(sys.argv[1])
try:
    mount_overlay(work / "lower", work, work / "seen")
except errors.Unsupported as error:
    print(error)
"""


def lower(machine: Machine, name: str = "w") -> Path:
    """A directory with something to show, and an empty one to show it at."""
    work = machine.inside(f"/var/tmp/{name}")
    work.mkdir(exist_ok=True)
    for each in ("lower", "seen"):
        (work / each).mkdir()
    (work / "lower/file").write_text("below")
    (work / "lower").chmod(0o750)
    os.chown(work / "lower", 5, 6)
    return work


def test_an_overlay_shows_what_is_below_and_keeps_changes_apart(machine: Machine) -> None:
    work = lower(machine)
    assert run(machine, OVERLAY, "/var/tmp/w") == ""
    status = (work / "seen").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o750, 5, 6)
    assert (work / "seen/file").read_text() == "below"
    (work / "seen/file").write_text("changed")
    assert (work / "lower/file").read_text() == "below"
    assert (work / "upper/file").read_text() == "changed"
    run(machine, "unmount_all_below(Path('/var/tmp/w'))")
    assert not [point for point in machine.mounts() if point.startswith("/var/tmp/w")]


def test_an_overlay_may_lie_at_any_path(machine: Machine) -> None:
    lower(machine, ODD)
    assert run(machine, OVERLAY, f"/var/tmp/{ODD}") == ""
    assert machine.inside(f"/var/tmp/{ODD}/seen/file").read_text() == "below"
    run(machine, "unmount_all_below(Path(sys.argv[1]))", f"/var/tmp/{ODD}")
    assert not [point for point in machine.mounts() if "seen" in point]
    machine.do("rm -r /var/tmp/a*")


def test_where_an_overlay_cannot_be_it_is_unsupported(machine: Machine) -> None:
    lower(machine)
    run(machine, OVERLAY, "/var/tmp/w")
    machine.do("cd /var/tmp/w/seen && mkdir inner inner/lower inner/seen")
    said = run(machine, OVERLAY, "/var/tmp/w/seen/inner")
    begin = "cannot lay an overlay over /var/tmp/w/seen/inner/lower in /var/tmp/w/seen/inner: "
    assert said.startswith(begin)
    assert len(said) > len(begin), "the kernel's word is missing"
    run(machine, "unmount_all_below(Path('/var/tmp/w'))")


def test_a_shared_directory_passes_mounts_to_its_peers_only(machine: Machine) -> None:
    machine.do("mkdir /var/tmp/w/shared /var/tmp/w/peer; touch /var/tmp/w/shared/file")
    run(machine, "bind_shared(Path('/var/tmp/w/shared'))")
    machine.do("cd /var/tmp/w; mount --rbind shared peer; mkdir shared/in; mount -t tmpfs none shared/in")
    assert "/var/tmp/w/peer/in" in machine.mounts()
    assert machine.inside("/var/tmp/w/shared/file").exists()
    run(machine, "unmount_all_below(Path('/var/tmp/w'))")
    assert machine.inside("/var/tmp/w/shared/file").exists()


def test_a_bind_shows_the_same_files(machine: Machine) -> None:
    machine.do("mkdir /var/tmp/w/one /var/tmp/w/two; touch /var/tmp/w/one/file")
    run(machine, "bind(Path('/var/tmp/w/one'), Path('/var/tmp/w/two'))")
    assert machine.inside("/var/tmp/w/two/file").exists()
    run(machine, "unmount_all_below(Path('/var/tmp/w/two'))")
    assert not machine.inside("/var/tmp/w/two/file").exists()


def test_stacked_nested_and_odd_mounts_all_go_and_neighbours_stay(machine: Machine) -> None:
    machine.do(r"""
        cd /var/tmp/w; mkdir top top-neighbour; mount -t tmpfs none top-neighbour
        mount -t tmpfs first top; mkdir top/in; mount -t tmpfs none top/in
        mount -t tmpfs second top; mkdir 'top/b l\a	n#k'; mount -t tmpfs none 'top/b l\a	n#k'
        ln -s top link
    """)
    before = [point for point in machine.mounts() if "/w/" in point]
    run(machine, "unmount_all_below(Path('/var/tmp/w/link'))")  # a link is not followed: a plugin may have put it there
    assert [point for point in machine.mounts() if "/w/" in point] == before
    for _ in range(2):  # it may be repeated
        run(machine, "unmount_all_below(Path('/var/tmp/w/top'))")
        assert [point for point in machine.mounts() if "/w/" in point] == ["/var/tmp/w/top-neighbour"]
    machine.do("umount /var/tmp/w/top-neighbour")


def test_a_busy_mount_is_detached(machine: Machine) -> None:
    machine.do("mkdir /var/tmp/w/top; mount -t tmpfs none /var/tmp/w/top; touch /var/tmp/w/top/file")
    with subprocess.Popen(
        machine.command("sh", "-c", "exec 3< /var/tmp/w/top/file; echo open; read line"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"open\n"
        run(machine, "unmount_all_below(Path('/var/tmp/w/top'))")
        assert "/var/tmp/w/top" not in machine.mounts()
        assert user.poll() is None


def test_what_is_not_mounted_needs_no_unmounting(machine: Machine) -> None:
    run(machine, "unmount_all_below(Path('/var/tmp/w')); unmount_all_below(Path('/no/such'))")


def test_m07_case_010_a_removal_never_crosses_a_mount_point(machine: Machine) -> None:
    program = """
from moorage.host.directory_tree import remove_tree_now
import subprocess
top = Path("/var/tmp/w/top"); inner = top / "a/host"; inner.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
(inner / "precious").write_text("x")
try:
    remove_tree_now(top)
except OSError as error:
    print(error.filename)
print((inner / "precious").exists())
unmount_all_below(top)
remove_tree_now(top)
print(top.exists())
"""
    assert run(machine, program).split() == ["/var/tmp/w/top/a/host", "True", "False"]


def test_d01_mounts_of_containerd_are_made_as_they_say(machine: Machine) -> None:
    program = """
from moorage.containerd.types import Mount
root = Path("/var/tmp/w"); made = [root / name for name in ("lower", "upper", "work", "seen", "bound")]
for each in made: each.mkdir()
(made[0] / "file").write_text("below")
mount_all([Mount("overlay", "overlay", (f"lowerdir={made[0]}", f"upperdir={made[1]}", f"workdir={made[2]}"))], made[3])
mount_all([Mount("bind", str(made[3]), ("rbind", "rw"))], made[4])
(made[4] / "new").write_text("x")
print((made[4] / "file").read_text(), (made[1] / "new").exists(), is_mount_point(made[3]), is_mount_point(made[0]))
try:
    mount_all([Mount("overlay", "overlay", ("lowerdir=/nope",))], made[3])
except errors.Unsupported as error:
    print("refused")
unmount_all_below(root)
print(is_mount_point(made[3]))
"""
    assert run(machine, program).split() == ["below", "True", "True", "False", "refused", "False"]
