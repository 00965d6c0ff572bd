"""A plugin's use of the machine, from files as each version of control groups has them."""

import os
from pathlib import Path

import pytest

from moorage.host.cgroup_usage import read_processes, read_usage
from moorage.host.cgroups import UNIFIED, find_groups
from moorage.host.proc import parse_mountinfo

pytestmark = pytest.mark.quick

GROUP = "/moorage/a"

V1 = """\
30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
22 27 0:21 / /proc rw,relatime - proc proc rw
"""
V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
NESTED = """\
30 24 0:26 /moorage /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw
31 24 0:27 /other /x rw - cgroup cgroup rw,pids
"""


def write(directory: Path, **files: str) -> Path:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return directory


def test_groups_are_found_by_what_is_mounted() -> None:
    assert find_groups(GROUP, parse_mountinfo(V1.encode())) == {
        UNIFIED: Path("/sys/fs/cgroup/unified/moorage/a"),
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct/moorage/a"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct/moorage/a"),
        "memory": Path("/sys/fs/cgroup/memory/moorage/a"),
    }
    assert find_groups(GROUP, parse_mountinfo(V2.encode())) == {UNIFIED: Path("/sys/fs/cgroup/moorage/a")}
    assert find_groups(GROUP, parse_mountinfo(NESTED.encode())) == {UNIFIED: Path("/sys/fs/cgroup/a")}


def test_version_1(tmp_path: Path) -> None:
    groups = {
        "cpuacct": write(tmp_path / "cpu", cpuacct__usage="1500000000\n"),
        "memory": write(
            tmp_path / "memory",
            memory__usage_in_bytes="10485760\n",
            memory__limit_in_bytes="9223372036854771712\n",
            memory__stat="cache 4096\ninactive_file 1\ntotal_inactive_file 485760\n",
            memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
        "pids": write(tmp_path / "pids", pids__current="7\n", pids__max="max\n"),
        "blkio": write(
            tmp_path / "blkio",
            blkio__throttle__io_service_bytes="8:0 Read 4096\n8:0 Write 100\n8:16 Read 4\n8:16 Total 4\nTotal 4200\n",
        ),
        UNIFIED: write(tmp_path / "unified"),
    }
    seen = read_usage(groups)
    assert (seen.cpu_seconds, seen.memory_bytes, seen.memory_limit_bytes) == (1.5, 10_000_000, None)
    assert (seen.pids, seen.pids_limit, seen.oom_kills) == (7, None, 2)
    assert (seen.read_bytes, seen.written_bytes) == (4100, 100)


def test_version_2(tmp_path: Path) -> None:
    group = write(
        tmp_path / "a",
        cpu__stat="usage_usec 2500000\nuser_usec 1\n",
        memory__current="10485760\n",
        memory__max="20971520\n",
        memory__stat="anon 1\ninactive_file 485760\n",
        memory__events="low 0\noom 1\noom_kill 1\n",
        pids__current="3\n",
        pids__max="100\n",
        io__stat="8:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=4 wbytes=0\n",
    )
    seen = read_usage({UNIFIED: group})
    assert (seen.cpu_seconds, seen.memory_bytes, seen.memory_limit_bytes) == (2.5, 10_000_000, 20_971_520)
    assert (seen.pids, seen.pids_limit, seen.oom_kills) == (3, 100, 1)
    assert (seen.read_bytes, seen.written_bytes) == (4100, 100)


def test_what_a_machine_does_not_count_is_none(tmp_path: Path) -> None:
    seen = read_usage({UNIFIED: tmp_path / "gone"})
    assert (seen.cpu_seconds, seen.memory_bytes, seen.pids, seen.read_bytes) == (None, None, None, None)
    assert read_usage({}).memory_bytes is None


def test_an_idle_plugin_of_version_2_has_read_nothing(tmp_path: Path) -> None:
    seen = read_usage({UNIFIED: write(tmp_path / "a", io__stat="")})
    assert (seen.read_bytes, seen.written_bytes) == (0, 0)


def test_processes_are_those_of_the_group_and_below_it(tmp_path: Path) -> None:
    group = write(tmp_path / "a", cgroup__procs=f"{os.getpid()}\n999999999\n")
    write(group / "inner", cgroup__procs=f"{os.getppid()}\n")
    seen = read_processes({"pids": group})
    assert {os.getpid(), os.getppid()} <= {each.pid for each in seen}  # and other children of these two
    own = next(each for each in seen if each.pid == os.getpid())
    assert own.parent == os.getppid()
    assert "pytest" in own.command or "python" in own.command
    assert own.memory_bytes > 2**20
    assert own.state in "RS"
    assert 0 < own.cpu_seconds < 3600 * 24
    assert read_processes({}) == []
