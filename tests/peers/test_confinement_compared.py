"""The table of docs/security.md is what scripts/confinement measures, and nothing is looser than with podman."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "podman", "static-cc")]

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/security.md").read_text()

LOOSER_THAN_PODMAN = {"capabilities (`CapEff`)", "`mknod` of a device", "raw socket"}
"""Docker's capabilities, which published plugins rely on; `policy --capabilities minimal` leaves out the same."""


def rows(text: str) -> dict[str, list[str]]:
    """Of a table in Markdown: the values by the name of the row."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {name: values for name, *values in lines if not name.startswith("-")}


def is_refused(value: str) -> bool:
    return value in ("EPERM", "ENOSYS")


def test_x01_x02_x03_x04_x08_the_table_is_measured_and_at_least_as_strict_as_podman() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/_confinement.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        timeout=limit(200),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured, documented = rows(done.stdout), rows(PAGE.partition("<!-- measured")[2].partition("<!-- end")[0])
    assert list(measured) == list(documented)
    moorage, mapped, dockerd, podman = range(4)
    for name, values in measured.items():
        assert values[moorage : mapped + 1] == documented[name][moorage : mapped + 1], name
        if is_refused(values[podman]) and name not in LOOSER_THAN_PODMAN:
            assert is_refused(values[moorage]), name
    assert measured["system call filter (`Seccomp`)"][dockerd] == "none"
    assert not is_refused(measured["`keyctl`"][dockerd])
    assert not list(Path("/sys/fs/cgroup").glob("*/moorage-confinement-*"))
