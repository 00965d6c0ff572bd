"""The package where systemd is process 1: reinstalled under a running plugin, removed, purged, installed again."""

from support.machines import Machine

DEB = "/root/moorage.deb"
"""Where `scripts/vm` leaves the package of this commit."""


def install(machine: Machine) -> None:
    machine.run(f"DEBIAN_FRONTEND=noninteractive dpkg --install {DEB}")


def main_process(machine: Machine) -> str:
    return machine.output("systemctl show --property MainPID --value moorage.service")


def test_it_is_compiled_for_the_python_of_this_debian(machine: Machine) -> None:
    tag = machine.output("python3 -c 'import sys; print(sys.implementation.cache_tag)'")
    assert tag == {12: "cpython-311", 13: "cpython-313"}[machine.release]
    counts = machine.output(
        f"find /usr/lib/moorage -name '*.{tag}.pyc' | wc -l; find /usr/lib/moorage -name '*.py' | wc -l"
    ).split()
    assert counts[0] == counts[1] != "0"
    assert machine.output("dpkg --verify moorage") == ""


def test_an_upgrade_restarts_the_engine_and_no_plugin(machine: Machine, volume_plugin: str) -> None:
    plugin = "grep -la '[h]ello_volume.py' /proc/[0-9]*/cmdline"
    before, engine = machine.output(plugin), main_process(machine)
    install(machine)
    assert machine.output("systemctl is-active moorage.service") == "active"
    assert main_process(machine) != engine
    assert machine.output(plugin) == before
    machine.run(f"moorage probe {volume_plugin}")


def test_remove_and_purge_leave_nothing_in_systemd(machine: Machine, volume_plugin: str) -> None:
    try:
        machine.run("dpkg --remove moorage")
        assert machine.output("test -d /var/lib/moorage && ! test -e /usr/lib/moorage && echo data") == "data"
        assert machine.run("pgrep -f '[h]ello_volume.py'", check=False).stdout == ""
        # that it was enabled is stored in /etc until the purge, as for every package: a name without a unit
        listed = machine.output("systemctl list-units --all --plain --no-legend 'moorage*'")
        assert listed.split() in ([], ["moorage.service", "not-found", "inactive", "dead", "moorage.service"]), listed
        install(machine)
        machine.run(f"moorage probe {volume_plugin}")  # it was enabled, and its data are still there
        machine.run("dpkg --purge moorage")
        assert machine.output("ls -d /var/lib/moorage /usr/lib/moorage 2>/dev/null || true") == ""
        assert machine.output("systemctl list-units --all --plain --no-legend 'moorage*.service'") == ""
        assert machine.output("find /etc/systemd /var/lib/systemd -name '*moorage*'") == ""
    finally:
        install(machine)
    assert machine.output("systemctl is-enabled moorage.service") == "enabled"
    assert machine.output("systemctl is-active moorage.service") == "active"
