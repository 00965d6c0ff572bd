"""Row L03: `moorage doctor` says what is missing or wrong on this machine, and how to fix it."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.doctor import ONLY_WHERE_WRONG, SUBJECTS
from support.foreground import Machine, wait_until
from support.local_user import open_to_all

pytestmark = pytest.mark.real

UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


Findings = dict[str, tuple[str, str, str]]


def examine(machine: Machine, status: int = 0, env: Mapping[str, str] | None = None, **options: Any) -> Findings:
    """Verdict, text and advice of each finding, where no engine has chosen anything before."""
    done = machine.moorage("--json", "doctor", env={"MOORAGE_ROOT": "/var/tmp/none", **(env or {})}, **options)
    assert (done.returncode, done.stderr) == (status, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["subject"] for each in found if each["subject"] not in ONLY_WHERE_WRONG] == SUBJECTS
    return {each["subject"]: (each["verdict"], each["text"], each["advice"]) for each in found}


def test_l03_a_good_machine_is_fine_and_nothing_is_left(machine: Machine) -> None:
    found = examine(machine, env={"MOORAGE_ROOT": "/var/tmp/data"})
    expected = [name for name in SUBJECTS if name != "dockerd"]
    assert {name: found[name][0] for name in expected} == dict.fromkeys(expected, "ok")
    assert all(found[name][2] == "" for name in expected)
    assert re.match(r"(runc|crun) version \S+; an engine would use it: ", found["runtime"][1])
    assert os.path.isabs(found["containerd"][1])
    assert found["overlay"][1] == "works in /var/tmp/data"


def test_l03_people_see_one_line_each_and_the_advice_below(machine: Machine) -> None:
    machine.hide("containerd")
    done = machine.moorage("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = lines.index("wrong    containerd: is not on this machine")
    assert lines[at + 1] == "         → install it (Debian: apt install containerd)"
    assert [line for line in lines if line.startswith("ok       containerd-shim-runc-v2: /")]


@pytest.mark.parametrize("name", ["containerd", "containerd-shim-runc-v2"])
def test_l03_a_missing_command_is_wrong_and_its_package_is_reported(machine: Machine, name: str) -> None:
    machine.hide(name)
    found = examine(machine, status=1)
    assert found[name] == ("wrong", "is not on this machine", "install it (Debian: apt install containerd)")


def test_l03_without_a_runtime_its_package_is_reported(machine: Machine) -> None:
    for name in ("runc", "crun"):
        machine.hide(name)
    advice = "install it (Debian: apt install runc)"
    assert examine(machine, status=1)["runtime"] == ("wrong", "there is no runc on this machine", advice)


def test_l03_without_root_it_says_so_and_inspects_the_rest(machine: Machine, tmp_path: Path) -> None:
    open_to_all(tmp_path)
    found = examine(machine, status=1, wrapper=UNPRIVILEGED)
    assert found["permissions"] == ("wrong", "does not run as root", "run moorage with sudo")
    assert found["overlay"][0] == "warning"
    assert found["runtime"][0] == "ok"


def test_l03_a_data_directory_on_noexec_is_reported_with_its_mount(machine: Machine) -> None:
    machine.do("mkdir /var/tmp/there; mount -t tmpfs -o noexec none /var/tmp/there; rm -rf /run/mount")
    verdict, text, advice = examine(machine, env={"MOORAGE_ROOT": "/var/tmp/there/a/b"})["data directory"]
    assert (verdict, "/var/tmp/there/a/b is on a file system that is mounted noexec" in text) == ("warning", True)
    assert advice == "mount /var/tmp/there without noexec, or choose another directory"
    machine.do("umount /var/tmp/there; rmdir /var/tmp/there; rm -rf /run/mount")


def test_l03_a_data_directory_that_is_relative_is_inspected_too(machine: Machine) -> None:
    machine.do("mkdir /var/tmp/there; mount -t tmpfs -o noexec none /var/tmp/there; rm -rf /run/mount")
    there = ["sh", "-c", 'cd /var/tmp/there && exec "$@"', "sh"]
    advice = examine(machine, env={"MOORAGE_ROOT": "no/such"}, wrapper=there)["data directory"][2]
    assert advice == "mount /var/tmp/there without noexec, or choose another directory"
    machine.do("umount /var/tmp/there; rmdir /var/tmp/there; rm -rf /run/mount")


def test_l03_a_small_data_directory_is_reported(machine: Machine) -> None:
    machine.do("mkdir /var/tmp/there; mount -t tmpfs -o size=5m none /var/tmp/there; rm -rf /run/mount")
    found = examine(machine, env={"MOORAGE_ROOT": "/var/tmp/there"})
    assert found["data directory"] == ("warning", "/var/tmp/there has only 5 MiB left", "free some space")
    machine.do("umount /var/tmp/there; rmdir /var/tmp/there; rm -rf /run/mount")


def test_l03_a_data_directory_that_cannot_be_written_to_is_wrong(machine: Machine) -> None:
    machine.do("mkdir /var/tmp/there; mount -t tmpfs -o ro none /var/tmp/there; rm -rf /run/mount")
    verdict, text, advice = examine(machine, status=1, env={"MOORAGE_ROOT": "/var/tmp/there"})["overlay"]
    assert (verdict, text) == ("wrong", "cannot write to /var/tmp/there: Read-only file system")
    assert advice
    machine.do("umount /var/tmp/there; rmdir /var/tmp/there; rm -rf /run/mount")


def test_l03_where_overlay_does_not_work_files_are_copied(machine: Machine) -> None:
    machine.do("""
        mkdir /var/tmp/s /var/tmp/there; cd /var/tmp/s; mkdir a b c
        mount -t overlay -o lowerdir=a,upperdir=b,workdir=c none /var/tmp/there; rm -rf /run/mount
    """)
    verdict, text, advice = examine(machine, env={"MOORAGE_ROOT": "/var/tmp/there"})["overlay"]
    assert verdict == "warning"
    assert text.endswith("; files are copied instead")
    assert advice == "use ext4, xfs or btrfs"
    assert list(machine.inside("/var/tmp/there").iterdir()) == []
    machine.do("umount /var/tmp/there; rm -r /var/tmp/*; rm -rf /run/mount")


@pytest.mark.parametrize(("length", "verdict", "status"), [(49, "ok", 0), (50, "wrong", 1), (100, "wrong", 1)])
def test_l03_a_run_directory_that_is_too_long_for_sockets_is_wrong(
    machine: Machine, length: int, verdict: str, status: int
) -> None:
    state = "/run/".ljust(length, "x")
    found = examine(machine, status=status, env={"MOORAGE_EXEC_ROOT": state})["socket paths"]
    assert found[0] == verdict
    if status:
        assert found[1:] == (f"{state} has {length} bytes; sockets below it may not fit", "use at most 49")


def test_l03_a_machine_without_control_groups_is_wrong() -> None:
    with Machine("umount -R /sys/fs/cgroup || umount -l /sys/fs/cgroup") as machine:
        verdict, text, advice = examine(machine, status=1)["control groups"]
    assert (verdict, text) == ("wrong", "not mounted: devices, memory, pids, freezer")
    assert "apt install cgroupfs-mount" in advice


def test_l03_a_dockerd_that_runs_is_reported(machine: Machine, tmp_path: Path) -> None:
    # doctor knows it by its name; a real one would change the machine's firewall
    shutil.copy("/bin/sleep", tmp_path / "dockerd")
    with subprocess.Popen([tmp_path / "dockerd", "1000000"]) as daemon:
        try:
            words = Path(f"/proc/{daemon.pid}/cmdline")  # there a moment after its name
            wait_until(lambda: words.read_bytes().startswith(os.fsencode(tmp_path / "dockerd")), "its name and words")
            verdict, text, advice = examine(machine)["dockerd"]
        finally:
            daemon.send_signal(signal.SIGKILL)
    assert verdict == "warning"
    assert text.startswith("runs here (pid ")
    assert advice == "leave moorage on its own containerd, as is the default"
