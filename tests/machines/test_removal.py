"""The package removed: systemd knows nothing of it any more."""

from collections.abc import Iterator

import pytest

from support.machines import Machine

INSTALL = "DEBIAN_FRONTEND=noninteractive dpkg --install /root/moorage.deb"


@pytest.fixture
def installed(machine: Machine) -> Iterator[Machine]:
    """The machine; the package is installed again after the test."""
    yield machine
    machine.run(INSTALL)


def units(machine: Machine) -> str:
    """What is active or failed; a link that enables the service stays until a purge, as Debian wants it."""
    return machine.output("systemctl list-units --plain --no-legend 'moorage*'")


def test_remove_and_purge_leave_no_unit(installed: Machine, volume_plugin: str) -> None:
    assert "moorage-down.service" in units(installed)
    assert volume_plugin in installed.output("moorage ls")
    installed.run("dpkg --remove moorage")
    assert units(installed) == ""
    installed.run(INSTALL)
    active = installed.output("systemctl is-active moorage.service moorage-down.service")
    assert active.split() == ["active", "active"]
    installed.run("dpkg --purge moorage")
    assert units(installed) == ""


def test_an_upgrade_stops_no_plugin(machine: Machine, volume_plugin: str) -> None:
    pids = machine.output("pgrep -f hello")
    machine.run(INSTALL)
    assert machine.output("systemctl is-active moorage-down.service") == "active"
    machine.wait_until(lambda: machine.run("moorage ls", check=False).returncode == 0, "the engine answers")
    assert volume_plugin in machine.output("moorage ls")
    assert set(pids.split()) & set(machine.output("pgrep -f hello").split())
