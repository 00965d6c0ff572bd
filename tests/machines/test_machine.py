"""What these machines are for: the kernel interfaces and services that users have, and the package on them."""

from support.machines import CHECKOUT, Machine


def test_the_machine_is_what_users_have(machine: Machine) -> None:
    assert machine.output("cat /proc/1/comm") == "systemd"
    assert machine.output("stat -fc %T /sys/fs/cgroup") == "cgroup2fs"
    assert "apparmor" in machine.output("cat /sys/kernel/security/lsm")
    assert machine.output("cat /etc/debian_version").startswith(f"{machine.release}.")
    assert machine.run("systemctl is-system-running", check=False).stdout.strip() == "running"


def test_the_demonstration_changes_nothing_on_the_machine(machine: Machine) -> None:
    options = machine.output("findmnt -no FS-OPTIONS /sys/fs/cgroup")
    assert "nsdelegate" in options
    machine.run(f"cd {CHECKOUT} && scripts/demo")
    assert machine.output("findmnt -no FS-OPTIONS /sys/fs/cgroup") == options


def test_a_plugin_runs_under_the_service(machine: Machine, volume_plugin: str) -> None:
    assert machine.output("systemctl is-active moorage.service") == "active"
    machine.run(f"moorage probe {volume_plugin}")
    assert volume_plugin in machine.output("moorage ls")
