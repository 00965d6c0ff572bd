"""What interrupts plugins: a reboot, a power cut, the engine killed or hung; and runs on the system's containerd."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from support.machines import CHECKOUT, Machine, inspect

GROUPS = "/sys/fs/cgroup"
VOLUMES = "/var/lib/moorage/plugins"
CALL = "moorage call hello VolumeDriver"
TWO = "--root /var/tmp/two --exec-root /run/two"
HOST_TWO = "moorage --host unix:///run/two/moorage.sock"


def wait_until_ready(machine: Machine, call: str = "moorage") -> Any:
    machine.wait_until(
        lambda: '"State": "ready"' in machine.run(f"{call} inspect hello", check=False).stdout, "the plugin is ready"
    )
    return inspect(machine, call=call)


def volume_mounts(machine: Machine) -> list[str]:
    """Where the host sees the volume mounted that the plugin has mounted."""
    found = machine.output("awk '$5 ~ /mounted\\/data1$/ {print $5}' /proc/self/mountinfo").split()
    return sorted({each for each in found if each.startswith(VOLUMES)})


def use_a_volume(machine: Machine) -> str:
    """Create a volume, mount it and write to it; where its data are."""
    machine.run(f'{CALL}.Create \'{{"Name": "data1"}}\' && {CALL}.Mount \'{{"Name": "data1", "ID": "a"}}\'')
    [mounted] = volume_mounts(machine)
    machine.run(f"echo kept >{mounted}/file && sync")
    return mounted


def check_after_an_interruption(machine: Machine, before: Any) -> Any:
    """The plugin runs again with its data, and nothing of the run before is left."""
    found = wait_until_ready(machine)
    assert found["Id"] == before["Id"]
    assert machine.output("systemctl is-active moorage.service") == "active"
    assert machine.output("systemctl --failed --plain --no-legend") == ""
    # the driver has mounted again what had a user, with its data; a Mount is repeated, and one Unmount leaves none
    assert "data1" in machine.output(f"{CALL}.List")
    machine.run(f'{CALL}.Mount \'{{"Name": "data1", "ID": "a"}}\'')
    [mounted] = volume_mounts(machine)
    assert machine.output(f"cat {mounted}/file") == "kept"
    machine.run(f'{CALL}.Unmount \'{{"Name": "data1", "ID": "a"}}\'')
    assert volume_mounts(machine) == []
    # one task, shim, control group and run-time directory: those of this run
    assert machine.output("pgrep -fc '[h]ello_volume.py'") == "1"
    assert machine.output("pgrep -c containerd-shim") == "1"
    scopes = machine.output(f"ls {GROUPS}/moorage.slice | grep scope$ || true").split()
    assert sorted(re.sub(r"[0-9a-f]{8,}(\.[0-9]+)?", "#", each) for each in scopes) == [
        "moorage-#.scope",
        "moorage-containerd-#.scope",
        "moorage-keeper-#.scope",
    ]
    assert machine.output("ls /run/moorage/p | wc -l") == "1"
    ctr = "ctr --address /run/moorage/containerd/c.sock -n plugins.moby"
    listed = machine.output(f"{ctr} tasks ls -q; {ctr} containers ls -q").split()
    assert [each.partition(".")[0] for each in listed] == [found["Id"]] * 2
    return found


def test_a_reboot_and_power_cuts_start_plugins_anew_with_their_data_and_nothing_stale(
    machine: Machine, volume_plugin: str
) -> None:
    before = inspect(machine)
    use_a_volume(machine)
    boot = machine.output("cat /proc/sys/kernel/random/boot_id")
    machine.reboot()
    assert machine.output("cat /proc/sys/kernel/random/boot_id") != boot
    after = check_after_an_interruption(machine, before)
    # the shutdown stopped it in good order: the journal of the last boot has the plugin's own exit
    stopped = machine.output("journalctl --no-pager -b -1 -u moorage-down.service -o cat")
    assert "stopped 1 plugin" in stopped, stopped
    machine.run(f'{CALL}.Mount \'{{"Name": "data1", "ID": "a"}}\'')
    machine.lose_power()
    machine.boot()
    after = check_after_an_interruption(machine, after)
    # power is lost while plugins are created, started and stopped
    machine.run(f"moorage create other {CHECKOUT}/examples/hello-volume && sync")
    machine.run(
        "nohup setsid sh -c 'while true; do moorage enable other; moorage disable other; done' >/dev/null 2>&1 &"
        " sleep 20"
    )
    machine.lose_power()
    machine.boot()
    wait_until_ready(machine)
    machine.wait_until(
        lambda: machine.run("moorage rm --force other", check=False).returncode == 0, "the other plugin is removed"
    )
    check_after_an_interruption(machine, after)


def restarted_engine(machine: Machine, engine: str) -> str:
    machine.wait_until(
        lambda: machine.output("systemctl show -P MainPID moorage.service") not in (engine, "0"), "a new engine"
    )
    machine.wait_until(lambda: machine.run("moorage ls", check=False).returncode == 0, "the engine answers")
    return machine.output("systemctl show -P MainPID moorage.service")


def test_a_restart_a_kill_and_the_watchdog_leave_plugins_and_their_mounts_alone(
    machine: Machine, volume_plugin: str
) -> None:
    before = inspect(machine)
    mounted = use_a_volume(machine)
    engine = machine.output("systemctl show -P MainPID moorage.service")
    for interruption in ("systemctl restart moorage.service", "kill -KILL {}", "kill -STOP {}"):
        machine.run(interruption.format(engine))
        engine = restarted_engine(machine, engine)
        found = inspect(machine)
        assert (found["Pid"], found["State"]) == (before["Pid"], "ready"), interruption
        assert volume_mounts(machine) == [mounted]
        machine.run(f"moorage probe hello && test $(cat {mounted}/file) = kept")
    assert "Watchdog timeout" in machine.journal(lines=200)


# ------------------------------------------------------------------------------------------------------- runtimes


@pytest.fixture(params=["runc", "crun"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def system_engine(machine: Machine, runtime: str) -> Iterator[str]:
    """How to call a second engine, on the containerd of the distribution; ``/var/tmp/serve-two`` starts it."""
    serve = f"moorage serve {TWO} --containerd system --runtime {runtime}"
    lines = (
        "#!/bin/sh",
        f"setsid {serve} >>/var/tmp/two.log 2>&1 </dev/null &",
        f"for each in $(seq 300); do {HOST_TWO} ls >/dev/null 2>&1 && exit 0; sleep 0.2; done",
        "cat /var/tmp/two.log >&2; exit 1",
    )
    machine.write("/var/tmp/serve-two", "\n".join(lines), "755")
    machine.run("systemctl start containerd.service && /var/tmp/serve-two")
    yield HOST_TWO
    # the namespace belongs to the engine of this directory, and the next test has another one
    forget = "systemctl stop containerd.service; rm -rf /var/lib/containerd/* /var/tmp/two /var/tmp/two.log"
    machine.run(f"moorage down {TWO}; {forget} /var/tmp/serve-two", check=False)


def test_plugins_run_on_the_containerd_of_the_distribution(machine: Machine, system_engine: str, runtime: str) -> None:
    call = system_engine
    machine.run(f"{call} create hello {CHECKOUT}/examples/hello-volume && {call} enable hello && {call} probe hello")
    found = inspect(machine, call=call)
    assert found["Runtime"].endswith(runtime)
    assert found["ControlGroup"] == f"/moorage.slice/moorage-{found['Id']}.1.scope"
    tasks = "ctr -n plugins.moby tasks ls"
    assert found["Id"] in machine.output(tasks)
    # the distribution restarts its containerd, and the engine is killed: the plugin runs on
    machine.run("systemctl restart containerd.service")
    engine = machine.output("pgrep -f '[m]oorage serve --root /var/tmp/two' | head -n 1")
    machine.run(f"kill -KILL {engine}; while test -e /proc/{engine}; do sleep 0.1; done; /var/tmp/serve-two")
    assert wait_until_ready(machine, call)["Pid"] == found["Pid"]
    machine.run(f"kill -KILL {found['Pid']}")
    machine.wait_until(lambda: inspect(machine, call=call)["Pid"] not in (0, None, found["Pid"]), "it is started again")
    last = wait_until_ready(machine, call)["LastExit"]
    assert (last["Code"], last["OOM"]) == (137, False)
    machine.run(f"{call} disable hello && {call} rm hello")
    assert found["Id"] not in machine.output(f"{tasks}; ctr -n plugins.moby containers ls; ls {GROUPS}/moorage.slice")
