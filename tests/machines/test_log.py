"""What the journal says of plugins, by priority."""

import json

from support.machines import Machine


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
