"""The API names the architecture of every machine that packages are selected for, from the one table."""

import platform

import pytest

from moorage.api.conversion import to_version
from moorage.oci.platforms import MACHINES
from moorage.plugins import seccomp
from moorage.runs.host_security import HostSecurity
from support.fake_backend import FakeBackend

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("machine", MACHINES)
def test_d14_the_api_names_every_architecture_of_the_table(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    version = to_version(FakeBackend().info())
    assert version.arch == MACHINES[machine][0]
    assert HostSecurity().features().architecture == MACHINES[machine][0]


@pytest.mark.parametrize(
    ("machine", "architecture"),
    [
        ("riscv64", "riscv64"),
        ("loongarch64", "loong64"),
        ("ppc64le", "ppc64le"),
        ("s390x", "s390x"),
        ("armv7l", "arm"),
        ("i686", "386"),
    ],
)
def test_d14_the_table_has_the_names_of_go(machine: str, architecture: str) -> None:
    assert MACHINES[machine][0] == architecture


def test_d14_the_filter_of_system_calls_has_no_architecture_of_its_own_name() -> None:
    known = {architecture for architecture, _ in MACHINES.values()}
    assert set(seccomp._ARCHITECTURES) <= known
