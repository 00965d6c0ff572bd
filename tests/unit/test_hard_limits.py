"""Hard limits that the engine cannot raise: one warning that names each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.limits import limit

pytestmark = pytest.mark.quick

_SET = """
import logging, resource
from moorage.host.process_environment import set_process_defaults
logging.basicConfig(format="%(levelname)s %(message)s")
set_process_defaults()
print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_FSIZE)[1])
"""
_WITHOUT = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to drop")


def start(*limits: str, without: list[str]) -> "subprocess.CompletedProcess[str]":
    command = ["prlimit", *limits, *without, sys.executable, "-c", _SET]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=limit(60))


@needs_root
@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (["--nofile=1000:2000"], ["open files (ulimit -n, LimitNOFILE=) at most 2000"]),
        (["--fsize=500000:500000"], ["file size (ulimit -f, LimitFSIZE=) at most 500000"]),
        (
            ["--nofile=2000:2000", "--cpu=9000:9000", "--nproc=5000:5000"],
            ["open files", "processor time (ulimit -t, LimitCPU=) at most 9000", "processes (ulimit -u, LimitNPROC=)"],
        ),
    ],
)
def test_d14_hard_limits_without_the_capability_are_one_warning(limits: list[str], named: list[str]) -> None:
    done = start(*limits, without=_WITHOUT)
    lines = [line for line in done.stderr.splitlines() if "hard limits" in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("WARNING cannot raise hard limits without CAP_SYS_RESOURCE")
    for name in named:
        assert name in lines[0]


@needs_root
def test_d14_limits_that_are_high_enough_are_no_warning() -> None:
    assert start(without=_WITHOUT).stderr == ""


@needs_root
def test_d14_with_the_capability_they_are_raised_without_a_warning() -> None:
    effective = re.search(r"^CapEff:\s*(\S+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert effective is not None
    may_raise = bool(int(effective[1], 16) >> 24 & 1)
    done = start("--nofile=1000:2000", "--fsize=500000:500000", without=[])
    assert ("hard limits" not in done.stderr) is may_raise
    assert done.stdout.endswith(" -1\n" if may_raise else " 500000\n")
