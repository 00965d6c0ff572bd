"""Whether the kernel's log says that a process was killed because memory was missing."""

import pytest

from moorage.host.processes import names_oom_kill

pytestmark = pytest.mark.quick

GROUP = "/moorage.slice/moorage-a.scope"


def victim(pid: int, group: str = GROUP, command: str = "driver") -> str:
    return (
        f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={group},"
        f"task_memcg={group},task={command},pid={pid},uid=0"
    )


def kill(pid: int, command: str = "driver") -> str:
    return (
        f"Memory cgroup out of memory: Killed process {pid} ({command}) total-vm:218656kB, anon-rss:20384kB, "
        "file-rss:5500kB, shmem-rss:0kB, UID:0 pgtables:84kB oom_score_adj:0"
    )


NOISE = "systemd[1]: moorage-a.scope: A process of this unit has been killed by the OOM killer."


@pytest.mark.parametrize(
    ("messages", "killed"),
    [
        ([], False),
        ([NOISE, victim(7), kill(7)], True),
        ([kill(7)], True),  # the kernel prints the line before it only so often
        (["Out of memory: Killed process 7 (driver) total-vm:1kB"], True),  # of the whole machine
        ([victim(77), kill(77)], False),
        ([victim(7)], False),
        ([victim(7, "/user.slice"), kill(7)], False),  # an earlier process of that number
        ([victim(7, "/user.slice"), kill(7), victim(7), kill(7)], True),
        ([victim(7), kill(7), victim(7, f"{GROUP}x"), kill(7)], False),
        ([victim(7, f"{GROUP}/container"), kill(7)], True),  # crun's, below the scope
        ([victim(7, f"/docker/1{GROUP}"), kill(7)], True),  # seen from a control group namespace
        ([victim(8, command="a,pid=7,uid=0"), kill(8, "a,pid=7,uid=0")], False),
    ],
)
def test_case_099_the_kernel_log_says_what_the_counter_would(messages: list[str], killed: bool) -> None:
    assert names_oom_kill(messages, 7, GROUP) is killed
