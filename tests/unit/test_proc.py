"""The reader of /proc, against processes that are gone, that exit, and whose names are made to be misread."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage.host import proc
from moorage.host.cgroups import is_member
from moorage.host.processes import has_users

pytestmark = pytest.mark.quick

NO_PID = 2**22 + 1  # no process has such a number


@contextmanager
def called(name: bytes) -> Iterator[int]:
    """A process with this command name."""
    program = (
        "import sys; from pathlib import Path; Path('/proc/self/comm').write_bytes(bytes.fromhex(sys.argv[1]));"
        "print('named', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, name.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"named\n"
        yield process.pid
        process.stdin.close()


@pytest.mark.parametrize(
    "name", [b"sh", b") R 1 (", b"a b\tc", b"a) Z 1 1 1", b"x\nState:\tZ", b"\rUid:\t4 4 4 4", b"\xff\xfe", b"("]
)
def test_a_name_is_never_taken_for_another_field(name: bytes) -> None:
    with called(name) as pid:
        stat = proc.process_stat(pid)
        assert stat is not None
        assert (stat.pid, stat.parent, stat.state in "RSD", stat.has_exited) == (pid, os.getpid(), True, False)
        assert stat.name == name.decode(errors="replace")
        assert proc.command_name(pid) == stat.name
        assert proc.user_ids(pid) == {os.geteuid()}
        assert has_users(pid, os.geteuid())
        assert not has_users(pid, 4)
        assert pid in proc.child_pids(os.getpid())
        assert pid in proc.pids()


def test_a_zombie_has_exited_and_keeps_its_name() -> None:
    with called(b"gone soon") as pid:
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert proc.has_exited(pid)
        assert proc.command_name(pid) == "gone soon"
        assert proc.command_line(pid) == []
        assert proc.executable(pid) == ""
        assert pid in proc.child_pids(os.getpid())


def test_nothing_is_known_of_a_process_that_has_exited() -> None:
    assert proc.process_stat(NO_PID) is None
    assert proc.has_exited(NO_PID)
    assert proc.working_directory(NO_PID) is None
    assert not proc.set_oom_score_adjustment(NO_PID, 0)
    for nothing in (proc.command_line, proc.child_pids, proc.descriptors, proc.mounts):
        assert nothing(NO_PID) == []
    assert (proc.command_name(NO_PID), proc.executable(NO_PID), proc.namespace("mnt", NO_PID)) == ("", "", "")
    assert not proc.thread_ids(NO_PID)
    assert not proc.user_ids(NO_PID)
    assert not proc.cgroup_memberships(NO_PID)
    assert not is_member(NO_PID, "/")


def test_arguments_are_returned_as_they_are() -> None:
    arguments = [sys.executable, "-c", "print('ready', flush=True); input()", "", "a b\nc", os.fsdecode(b"\xff")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"ready\n"
        assert proc.command_line(process.pid) == arguments
        assert proc.working_directory(process.pid) == Path.cwd()
        assert os.path.samefile(proc.executable(process.pid), proc.own_executable())
        assert proc.namespace("mnt", process.pid) == proc.namespace("mnt") != ""
        assert os.path.samefile(proc.namespace_path("mnt", process.pid), proc.namespace_path("mnt", os.getpid()))
        process.stdin.write(b"\n")


def test_a_descriptor_has_a_path(tmp_path: Path) -> None:
    with open(tmp_path / "a", "w+") as file:
        assert os.readlink(proc.descriptor_path(file.fileno())) == str(tmp_path / "a")
        assert str(file.fileno()) in {path.name for path in proc.descriptors()}


def test_mounts_with_odd_names() -> None:
    text = (
        rb"""
36 35 98:0 /mnt1 /mnt\0402\011tab\134back\012line rw master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue
37 35 0:5 / /a\040-\040b rw - overlay over\040lay rw,lowerdir=/x:/y
38 35 0:6 / /carriage"""
        + b"\rreturn\xff rw - tmpfs tmpfs rw\n"
    )
    first, second, third = proc.parse_mountinfo(text)
    assert first == proc.MountInfo("/mnt1", "/mnt 2\ttab\\back\nline", "ext3", ["rw", "errors=continue"], "/dev/root")
    assert third.point == os.fsdecode(b"/carriage\rreturn\xff")
    assert second.point == "/a - b"


def test_every_mount_has_its_point() -> None:
    before, points = [""], list[str]()
    for _ in range(20):  # other tests mount and unmount meanwhile
        before, points, after = list(proc.mount_points()), [each.point for each in proc.mounts()], proc.mount_points()
        if before == list(after):
            break
    assert points == before
    assert "/proc" in proc.mount_points()


def test_kernel_parameters(tmp_path: Path) -> None:
    assert proc.kernel_parameter("fs/nr_open").isdecimal()  # type: ignore[union-attr]  # every kernel has it
    assert proc.kernel_parameter("no/such") is None
    assert proc.boot_id().count("-") == 4
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\rCapEff:\tff\nCapEff:\t0000000000000021\n")
    assert proc.effective_capabilities(tmp_path) == 0x21
