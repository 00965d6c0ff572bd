"""What the version of containerd decides: its configuration, and what `moorage doctor` says of it."""

import tomllib
from pathlib import Path

import pytest
from msgspec import Struct

from moorage.containerd.containerd_process import configuration, configuration_version, version_numbers
from moorage.doctor.check import CheckTarget, run_checks
from moorage.doctor.containerd import CONTAINERD_CHECKS
from moorage.doctor.findings import Finding, Verdict
from moorage.host.cgroups import CgroupLayout, cgroup_layout


class State(Struct):
    containerd: str
    containerd_version: str
    containerd_address: str = ""
    problem: str = ""
    runtime: str = ""
    runtime_version: str = ""
    runtime_reason: str = ""
    notices: tuple[str, ...] = ()


class Info(Struct):
    moorage: State
    server_version: str = ""


def install(directory: Path, version: str) -> str:
    """A program that prints this version, as containerd's does."""
    program = directory / "containerd"
    program.write_text(f"#!/bin/sh\necho 'containerd github.com/containerd/containerd {version} abc'\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.6.20~ds1", 2),
        ("1.7.24", 2),
        ("v2.0.11", 3),
        ("v2.2.7", 3),
        ("v2.3.4", 4),
        ("2.4.0-beta+unknown", 4),
        ("v10.1.0", 4),
        ("", 2),
    ],
)
def test_the_newest_configuration_that_it_understands_is_written(tmp_path: Path, version: str, expected: int) -> None:
    assert configuration_version(install(tmp_path, version)) == expected


def test_without_an_answer_the_oldest_configuration_is_written(tmp_path: Path) -> None:
    assert configuration_version(str(tmp_path / "none")) == 2


@pytest.mark.parametrize("version", [2, 3, 4])
def test_each_configuration_names_the_same_directories_and_sockets(version: int) -> None:
    read = tomllib.loads(configuration(Path("/r"), Path("/s"), "/s/c.sock", version))
    assert (read["version"], read["root"], read["state"]) == (version, "/r", "/s")
    if version < 4:
        assert read["grpc"]["address"] == "/s/c.sock"
    else:
        servers = {name.rpartition(".")[2]: each["address"] for name, each in read["plugins"].items()}
        assert servers == {"grpc": "/s/c.sock", "ttrpc": "/s/c.sock.ttrpc"}


def found(installed: Path, running: str, monkeypatch: pytest.MonkeyPatch, containerd: str = "private") -> list[Finding]:
    monkeypatch.setenv("PATH", str(installed))
    target = CheckTarget(Path("/d"), Path("/r"), Path("/r/s"), lambda: Info(State(containerd, running)))
    return list(run_checks(CONTAINERD_CHECKS, target))


@pytest.mark.parametrize(
    ("running", "installed", "containerd", "is_reported"),
    [
        ("v2.3.4", "1.6.20~ds1", "private", True),
        ("v2.0.11", "1.7.24", "system", True),
        ("v2.0.11", "1.7.24", "/run/other.sock", False),
        ("1.6.20~ds1", "1.7.24", "private", False),
        ("1.7.24", "1.6.20~ds1", "private", False),
        ("v2.1.9", "v2.0.11", "private", False),
        ("", "1.6.20~ds1", "private", False),
    ],
)
def test_doctor_warns_of_a_containerd_that_would_end_every_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, running: str, installed: str, containerd: str, is_reported: bool
) -> None:
    install(tmp_path, installed)
    findings = found(tmp_path, running, monkeypatch, containerd)
    assert [each.verdict for each in findings] == [Verdict.WARNING] * is_reported
    assert all("ends every plugin" in each.text for each in findings)


@pytest.mark.parametrize(("installed", "deprecates"), [("v2.1.9", False), ("v2.2.7", True), ("v2.3.4", True)])
def test_doctor_says_that_this_containerd_deprecates_control_groups_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, deprecates: bool
) -> None:
    install(tmp_path, installed)
    findings = found(tmp_path, installed, monkeypatch)
    is_reported = deprecates and cgroup_layout().layout is not CgroupLayout.V2
    assert ["control groups version 1" in each.text for each in findings] == [True] * is_reported


def test_a_text_that_is_no_version_is_older_than_all() -> None:
    assert version_numbers("unknown") == (0, 0)
