"""What the journal says of plugins, by priority."""

import json

from support.machines import Machine, inspect


def test_an_exit_is_a_warning_in_the_journal(machine: Machine, volume_plugin: str) -> None:
    plugin = json.loads(machine.output(f"moorage --json inspect {volume_plugin}"))
    machine.run(f"kill -9 {plugin['Moorage']['Pid']}")
    line = f"plugin {volume_plugin}:latest exited: exit=137 signal=SIGKILL oom=no restarts=0 next_try="
    machine.wait_until(lambda: line in machine.journal("-p", "warning"), "the line of the exit")
    warnings = machine.journal("-p", "warning")
    assert f"plugin {volume_plugin}:latest is ready" not in warnings
    assert f"plugin {volume_plugin}:latest is ready" in machine.journal()


def test_a_plugin_that_stays_down_is_an_error_in_the_journal(machine: Machine, volume_plugin: str) -> None:
    machine.run(f"moorage policy {volume_plugin} --restart never")
    plugin = json.loads(machine.output(f"moorage --json inspect {volume_plugin}"))
    machine.run(f"kill -9 {plugin['Moorage']['Pid']}")
    machine.wait_until(lambda: "next_try=never" in machine.journal("-p", "err"), "the line of the exit")


def test_the_lines_of_a_plugin_are_in_the_journal_with_its_name_and_id(machine: Machine, volume_plugin: str) -> None:
    machine.run(f"moorage policy {volume_plugin} --log journald && moorage disable {volume_plugin}")
    machine.run(
        f"moorage set {volume_plugin} DEBUG=1 && moorage enable {volume_plugin} && moorage probe {volume_plugin}"
    )
    fields = f"MOORAGE_PLUGIN={volume_plugin}:latest"
    lines = machine.output(f"moorage logs {volume_plugin}").splitlines()
    assert lines, "the plugin logs each call"
    machine.wait_until(
        lambda: lines[-1] in machine.run(f"journalctl --no-pager -b -o cat {fields}").stdout.splitlines(),
        "the plugin's last line is in the journal",
    )
    entry = json.loads(machine.output(f"journalctl --no-pager -b -o json -n 1 {fields}"))
    assert entry["MOORAGE_PLUGIN_ID"] == inspect(machine, volume_plugin)["Id"]
    # journald is stopped for a while: the plugin does not wait for it, and its files have all lines
    machine.run("systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service")
    machine.run(f"moorage probe {volume_plugin}")
    assert len(machine.output(f"moorage logs {volume_plugin}").splitlines()) > len(lines)
    machine.run("systemctl start systemd-journald.socket systemd-journald.service")
