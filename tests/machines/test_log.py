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
    machine.run(f"moorage policy {volume_plugin} --log journald")
    stop_and_start = f"moorage disable {volume_plugin} && moorage enable {volume_plugin}"
    machine.run(stop_and_start)
    fields = f"--no-pager -b MOORAGE_PLUGIN={volume_plugin}:latest"
    machine.wait_until(
        lambda: (
            machine.output(f"journalctl -o cat {fields}").splitlines()[-2:]
            == ["stopped", "listening on /run/docker/plugins/hello.sock"]
        ),
        "the plugin's lines are in the journal",
    )
    entry = json.loads(machine.output(f"journalctl -o json -n 1 {fields}"))
    assert entry["MOORAGE_PLUGIN_ID"] == inspect(machine, volume_plugin)["Id"]
    # journald is stopped for a while: the plugin does not wait for it, and its files have all lines
    units = "systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service"
    lines = len(machine.output(f"moorage logs {volume_plugin}").splitlines())
    machine.run(f"systemctl stop {units} && {stop_and_start}")
    assert len(machine.output(f"moorage logs {volume_plugin}").splitlines()) == lines + 2
    machine.run(f"systemctl start {units} && {stop_and_start}")
    machine.wait_until(
        lambda: machine.output(f"journalctl -o cat {fields}").splitlines()[-1].startswith("listening"),
        "lines arrive again",
    )
