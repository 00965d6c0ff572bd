"""Control groups and systemd: what a plugin changes on the host, its scope and limits, restarts, reloads of systemd."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from support.machines import CHECKOUT, Machine, inspect

OPTIONS = "findmnt -no FS-OPTIONS /sys/fs/cgroup"
EXAMPLES = f"{CHECKOUT}/examples"
GROUPS = "/sys/fs/cgroup"
SOCKET = "/run/moorage/moorage.sock"
STATE = "/run/moorage"


def group_of(machine: Machine, pid: int | str) -> str:
    """The control group of a process."""
    return machine.output(f"cat /proc/{pid}/cgroup").removeprefix("0::")


def program_groups(machine: Machine) -> tuple[str, str]:
    """The control groups of the private containerd and of the log keeper."""
    lines = machine.output(
        f"cat /proc/$(cat {STATE}/containerd/pid)/cgroup /proc/$(cat {STATE}/keeper/pid)/cgroup"
    ).split("\n")
    containerd, keeper = (line.removeprefix("0::") for line in lines)
    return containerd, keeper


def cursor(machine: Machine) -> str:
    """The present end of the journal, as a time: journalctl 252 skips the first match after a cursor that is none."""
    return machine.output("date +@%s.%6N")


def messages_since(machine: Machine, start: str, *options: str) -> str:
    read = f"journalctl --no-pager --quiet -o cat --since={shlex.quote(start)} {shlex.join(options)}"
    return machine.output(f"journalctl --sync; {read}")


def create(machine: Machine, name: str, **linux: Any) -> str:
    """A plugin like examples/hello-volume, with more in the part ``linux`` of its config; it is enabled."""
    change = (
        "import json, sys; path = sys.argv[1] + '/config.json'; config = json.load(open(path)); "
        "config['linux'] |= json.loads(sys.argv[2]); json.dump(config, open(path, 'w'))"
    )
    copy = f"/var/tmp/{name}"
    machine.run(
        f"rm -rf {copy} && cp -a {EXAMPLES}/hello-volume {copy} && "
        f"python3 -c {shlex.quote(change)} {copy} {shlex.quote(json.dumps(linux))} && "
        f"moorage create {name} {copy} && rm -rf {copy} && moorage enable {name}"
    )
    return name


def restart(machine: Machine, **variables: str) -> None:
    """Restart the engine with these settings of the service, and no other."""
    lines = "".join(f"{name}={value}\n" for name, value in variables.items())
    machine.run(f"printf %s {shlex.quote(lines)} >/etc/default/moorage && systemctl restart moorage.service")


@pytest.fixture
def settings(machine: Machine) -> Iterator[None]:
    """The settings of the service are restored after the test, and plugins with them."""
    saved = machine.run("cat /etc/default/moorage", check=False).stdout
    yield
    machine.run("for name in $(moorage ls --quiet); do moorage rm --force $name; done", check=False)
    machine.run(f"printf %s {shlex.quote(saved)} >/etc/default/moorage && systemctl restart moorage.service")


# ------------------------------------------------------------------------------------------------------ the host


def test_a_plugin_changes_no_option_of_the_hosts_control_groups(machine: Machine) -> None:
    before = machine.output(OPTIONS)
    assert "nsdelegate" in before
    assert "memory_recursiveprot" in before
    machine.run(f"moorage create hello {EXAMPLES}/hello-volume && moorage enable hello")
    assert machine.output(OPTIONS) == before
    pid = inspect(machine)["Pid"]
    [mounted] = machine.output(f"grep ' {GROUPS} ' /proc/{pid}/mountinfo").split("\n")
    assert set(mounted.split()[5].split(",")) >= {"ro", "nosuid", "nodev", "noexec"}
    assert machine.output(f"ls /proc/{pid}/root{GROUPS}") == machine.output(f"ls {GROUPS}"), "the same view as the host"
    refused = machine.run(f"moorage exec hello /usr/bin/mkdir {GROUPS}/mine", check=False)
    assert "Read-only file system" in refused.stderr + refused.stdout
    machine.run("moorage disable hello && moorage rm hello")
    assert machine.output(OPTIONS) == before


def test_a_plugin_with_a_user_namespace_changes_none_either(machine: Machine) -> None:
    before = machine.output(OPTIONS)
    machine.run(
        f"cd {EXAMPLES}/hello-static && ./build && moorage create hello . && "
        "moorage policy hello --userns auto && moorage enable hello && moorage probe hello"
    )
    assert machine.output(OPTIONS) == before
    pid = inspect(machine)["Pid"]
    assert machine.output(f"readlink /proc/{pid}/ns/user") != machine.output("readlink /proc/1/ns/user")
    [mounted] = machine.output(f"grep ' {GROUPS} ' /proc/{pid}/mountinfo").split("\n")
    assert "ro" in mounted.split()[5].split(",")
    machine.run("moorage rm --force hello")
    assert machine.output(OPTIONS) == before


# ---------------------------------------------------------------------------------------------- where everything is


def test_all_that_outlives_the_engine_is_a_scope_in_the_slice(machine: Machine, volume_plugin: str) -> None:
    found = inspect(machine, volume_plugin)
    assert re.fullmatch(rf"/moorage\.slice/moorage-{found['Id']}\.[0-9]+\.scope", found["ControlGroup"])
    assert group_of(machine, found["Pid"]) == found["ControlGroup"]
    containerd, keeper = program_groups(machine)
    assert re.fullmatch(r"/moorage\.slice/moorage-containerd-[0-9a-f]{8}\.scope", containerd)
    assert re.fullmatch(r"/moorage\.slice/moorage-keeper-[0-9a-f]{8}\.scope", keeper)
    assert group_of(machine, machine.output(f"ps -o ppid= -p {found['Pid']}").strip()) == containerd
    engine = machine.output("systemctl show -P MainPID moorage.service")
    assert machine.output(f"cat {GROUPS}/system.slice/moorage.service/cgroup.procs").split() == [engine]
    shown = machine.output("systemd-cgls --no-pager -u moorage.slice")
    for group in (found["ControlGroup"], containerd, keeper):
        assert group.rpartition("/")[2] in shown
    assert "containerd-shim-runc-v2" in shown
    info = json.loads(machine.output(f"curl -s --unix-socket {SOCKET} http://moorage/info"))
    assert (info["CgroupDriver"], info["CgroupVersion"]) == ("systemd", "2")
    assert "systemd creates those of plugins" in machine.run("moorage doctor", check=False).stdout
    usage = json.loads(machine.output(f"moorage stats --no-stream --json {volume_plugin}"))
    assert "6" in json.dumps(usage)


def test_containerd_in_a_scope_has_what_the_engine_defines_for_it(machine: Machine, volume_plugin: str) -> None:
    pid = machine.output(f"cat {STATE}/containerd/pid")
    # of all threads: Go's runtime blocks signals in the first one when the goroutine that was locked to it has ended
    status = machine.output(f"cat /proc/{pid}/task/*/status /proc/{pid}/limits /proc/{pid}/oom_score_adj")
    assert "\nUmask:\t0022\n" in status
    assert "\nSigBlk:\t0000000000000000\n" in status
    assert re.search(r"Max open files +1048576 +1048576", status)
    assert status.endswith("\n-999")
    scope = program_groups(machine)[0].rpartition("/")[2]
    shown = machine.output(f"systemctl show -p Description -p TasksMax -p Delegate -p DefaultDependencies {scope}")
    assert "Description=Moorage, containerd and shims of /var/lib/moorage" in shown
    assert {"TasksMax=infinity", "Delegate=yes", "DefaultDependencies=no"} <= set(shown.split("\n"))


@pytest.mark.parametrize("runtime", ["runc", "crun"])  # crun would ask the systemd of root's login for a scope
def test_a_root_shell_and_several_engines_get_scopes_of_their_own(machine: Machine, runtime: str) -> None:
    options = f"--runtime {runtime} --root /var/tmp/two --exec-root /run/two"
    serve = f"setsid moorage serve {options} >/var/tmp/two.log 2>&1 </dev/null &"
    call = "moorage --host unix:///run/two/moorage.sock"
    assert machine.output("echo $XDG_RUNTIME_DIR") == "/run/user/0"
    machine.run(f"{serve} until {call} ls >/dev/null 2>&1; do sleep 0.2; done")
    try:
        machine.run(f"{call} create hello {EXAMPLES}/hello-volume && {call} enable hello")
        scope = group_of(machine, machine.output("cat /run/two/containerd/pid"))
        assert re.fullmatch(r"/moorage\.slice/moorage-containerd-[0-9a-f]{8}\.scope", scope)
        assert scope != program_groups_or_none(machine)
        plugin = inspect(machine, call=call)
        assert group_of(machine, plugin["Pid"]) == plugin["ControlGroup"]
    finally:
        machine.run("moorage down --root /var/tmp/two --exec-root /run/two; rm -rf /var/tmp/two /var/tmp/two.log")
    assert machine.run(f"systemctl is-active {scope.rpartition('/')[2]}", check=False).stdout.strip() == "inactive"
    assert machine.output("systemctl is-active moorage.service") == "active"


def program_groups_or_none(machine: Machine) -> str:
    return machine.run(f"cat /proc/$(cat {STATE}/containerd/pid)/cgroup", check=False).stdout.strip()[3:]


# ------------------------------------------------------------------------------------------- the engine's own unit


def test_a_restart_warns_of_nothing_and_a_signal_to_the_unit_reaches_the_engine_alone(
    machine: Machine, volume_plugin: str
) -> None:
    pid, start = inspect(machine, volume_plugin)["Pid"], cursor(machine)
    groups = program_groups(machine)
    machine.run("systemctl restart moorage.service")
    assert inspect(machine, volume_plugin)["Pid"] == pid
    assert messages_since(machine, start, "-p", "warning", "-u", "moorage.service") == ""
    assert "left-over" not in messages_since(machine, start)
    engine = machine.output("systemctl show -P MainPID moorage.service")
    machine.run("systemctl kill --signal=KILL moorage.service")
    machine.wait_until(
        lambda: (
            machine.run(
                f"systemctl is-active --quiet moorage.service && test $(systemctl show -P MainPID moorage) != {engine}",
                check=False,
            ).returncode
            == 0
        ),
        "the engine is started again",
    )
    assert inspect(machine, volume_plugin)["Pid"] == pid
    assert program_groups(machine) == groups, "containerd and the log keeper are the same"
    assert "left-over" not in messages_since(machine, start)
    machine.run(f"moorage probe {volume_plugin}")


def test_a_new_containerd_is_in_a_new_scope_beside_the_shims_of_the_old_one(
    machine: Machine, volume_plugin: str
) -> None:
    pid, old = inspect(machine, volume_plugin)["Pid"], program_groups(machine)[0]
    shim = machine.output(f"ps -o ppid= -p {pid}").strip()
    machine.run(f"kill -KILL $(cat {STATE}/containerd/pid)")
    machine.wait_until(lambda: program_groups_or_none(machine) not in ("", old), "containerd is started again")
    new = program_groups_or_none(machine)
    assert new.startswith("/moorage.slice/moorage-containerd-")
    assert group_of(machine, shim) == old
    machine.run(f"until moorage disable {volume_plugin}; do sleep 1; done; moorage enable {volume_plugin}")
    shim = machine.output(f"ps -o ppid= -p {inspect(machine, volume_plugin)['Pid']}").strip()
    assert group_of(machine, shim) == new
    machine.wait_until(
        lambda: machine.run(f"test -e {GROUPS}{old}", check=False).returncode == 1, "the old scope goes with its shim"
    )


def test_without_systemd_run_all_works_and_one_warning_says_so(machine: Machine) -> None:
    machine.run("moorage down", check=False)
    start = cursor(machine)
    machine.run("mv /usr/bin/systemd-run /usr/bin/systemd-run.gone && systemctl start moorage.service")
    try:
        machine.run(f"moorage create hello {EXAMPLES}/hello-volume && moorage enable hello && moorage probe hello")
        said = messages_since(machine, start, "-p", "warning", "-u", "moorage.service")
        assert said.count("there is no systemd-run") == 2, "containerd and the log keeper"
        assert program_groups_or_none(machine) == "/system.slice/moorage.service"
        machine.run("moorage rm --force hello")
    finally:
        machine.run("mv /usr/bin/systemd-run.gone /usr/bin/systemd-run", check=False)
        machine.run("systemctl stop moorage.service; moorage down; systemctl start moorage.service")


def test_a_systemd_run_that_fails_is_one_warning_with_its_reason(machine: Machine) -> None:
    machine.run("systemctl stop moorage.service; moorage down", check=False)
    start = cursor(machine)
    failing = "#!/bin/sh\necho 'the bus is broken' >&2\nexit 1\n"
    machine.write("/usr/local/bin/systemd-run", failing, "755")  # found before the real one
    try:
        machine.run("systemctl start moorage.service")
        said = messages_since(machine, start, "-p", "warning", "-u", "moorage.service")
        assert said.count("(the bus is broken)") == 1
        assert program_groups_or_none(machine) == "/system.slice/moorage.service"
    finally:
        machine.run("rm /usr/local/bin/systemd-run; systemctl stop moorage.service; moorage down", check=False)
        machine.run("systemctl start moorage.service")


# ------------------------------------------------------------------------------------------------ reloads and limits

ALLOWED = "moorage exec hello /usr/bin/python3 -c \"open('/dev/fuse', 'r+b', 0)\""
DENIED = "moorage exec hello /bin/sh -c 'test -e /k || mknod /k c 1 2; : </k'"


def check_devices(machine: Machine) -> None:
    machine.run(ALLOWED)
    refused = machine.run(DENIED, check=False)
    assert refused.returncode != 0
    assert "Operation not permitted" in refused.stdout + refused.stderr


@pytest.mark.parametrize("reload", ["daemon-reload", "daemon-reexec"])
def test_devices_stay_allowed_and_denied_when_systemd_is_reloaded(machine: Machine, reload: str) -> None:
    machine.run("modprobe fuse", check=False)
    create(machine, "hello", devices=[{"path": "/dev/fuse"}])
    pid = inspect(machine)["Pid"]
    check_devices(machine)
    machine.run(f"systemctl {reload}")
    check_devices(machine)
    machine.run("systemctl restart moorage.service")
    check_devices(machine)
    assert inspect(machine)["Pid"] == pid
    machine.run("moorage policy hello --memory 512m")
    check_devices(machine)


def test_limits_that_are_set_on_units_apply_beside_the_plugins_own(machine: Machine, volume_plugin: str) -> None:
    found = inspect(machine, volume_plugin)
    group, scope = GROUPS + found["ControlGroup"], found["ControlGroup"].rpartition("/")[2]
    machine.run(
        f"moorage policy {volume_plugin} --pids 300 && "
        f"systemctl set-property --runtime {scope} MemoryMax=300M CPUQuota=50% && "
        "systemctl set-property --runtime moorage.slice MemoryMax=1500M"
    )
    read = f"cat {group}/memory.max {group}/cpu.max {group}/pids.max {GROUPS}/moorage.slice/memory.max"
    expected = [str(300 << 20), "50000 100000", "300", str(1500 << 20)]
    try:
        assert machine.output(read).split("\n") == expected
        for event in ("systemctl daemon-reload", "systemctl daemon-reexec", "systemctl restart moorage.service"):
            machine.run(event)
            assert machine.output(read).split("\n") == expected, event
        machine.run(f"moorage policy {volume_plugin} --pids 400")
        expected[2] = "400"
        assert machine.output(read).split("\n") == expected
        machine.run(f"moorage disable {volume_plugin} && moorage enable {volume_plugin}")
        group = GROUPS + inspect(machine, volume_plugin)["ControlGroup"]
        assert machine.output(f"cat {group}/pids.max {GROUPS}/moorage.slice/memory.max").split("\n") == expected[2:]
    finally:
        machine.run("systemctl set-property --runtime moorage.slice MemoryMax=infinity")


def test_no_limit_of_processes_is_none_in_the_scope_either(machine: Machine, volume_plugin: str) -> None:
    group = GROUPS + inspect(machine, volume_plugin)["ControlGroup"]
    assert machine.output(f"cat {group}/pids.max") == "2048"
    machine.run(
        f"moorage policy {volume_plugin} --pids 0 && moorage disable {volume_plugin} && moorage enable {volume_plugin}"
    )
    group = GROUPS + inspect(machine, volume_plugin)["ControlGroup"]
    assert machine.output(f"cat {group}/pids.max") == "max"


def test_an_oom_kill_is_reported_as_one(machine: Machine) -> None:
    machine.run(f"moorage create hello {EXAMPLES}/hello-volume && moorage policy hello --memory 64m --restart never")
    machine.run("moorage enable hello")
    group = GROUPS + inspect(machine)["ControlGroup"]
    # a process that is killed for memory beside the plugin's own does not end it
    hog = "python3 -c 'b = [bytearray(1 << 20) for _ in range(4096)]'"
    child = machine.run(f"moorage exec hello /usr/bin/{hog}", check=False)
    assert child.returncode == 137
    assert inspect(machine)["State"] == "ready"
    assert "oom_kill 1" in machine.output(f"cat {group}/memory.events")
    pid = inspect(machine)["Pid"]
    # all of the group is to be killed at once, so the plugin's first process is killed for memory
    machine.run(f"echo 1 >{group}/memory.oom.group; moorage exec hello /usr/bin/{hog}", check=False)
    machine.wait_until(lambda: inspect(machine)["Pid"] != pid, "the plugin exits")
    last = inspect(machine)["LastExit"]
    assert (last["Code"], last["OOM"]) == (137, True)


# ------------------------------------------------------------------------------------------------- the other driver


def test_a_run_of_the_other_driver_is_adopted_measured_and_stopped(machine: Machine, settings: None) -> None:
    restart(machine, MOORAGE_CGROUP_DRIVER="cgroupfs")
    machine.run(f"moorage create hello {EXAMPLES}/hello-volume && moorage enable hello")
    found = inspect(machine)
    assert found["ControlGroup"] == f"/moorage/{found['Id']}.1" == group_of(machine, found["Pid"])
    restart(machine)
    again = inspect(machine)
    assert (again["Pid"], again["ControlGroup"]) == (found["Pid"], found["ControlGroup"])
    assert [each["Pid"] for each in again["Processes"]] == [found["Pid"]]
    assert json.loads(machine.output("moorage stats --no-stream --json hello"))
    machine.run("moorage restart hello")
    moved = inspect(machine)
    assert moved["ControlGroup"] == f"/moorage.slice/moorage-{found['Id']}.2.scope" == group_of(machine, moved["Pid"])
    assert machine.run(f"test -e {GROUPS}{found['ControlGroup']}", check=False).returncode == 1
    restart(machine, MOORAGE_CGROUP_DRIVER="cgroupfs")
    assert inspect(machine)["ControlGroup"] == moved["ControlGroup"]
    machine.run("moorage disable hello")
    assert machine.run(f"test -e {GROUPS}{moved['ControlGroup']}", check=False).returncode == 1


@pytest.mark.parametrize("driver", ["systemd", "cgroupfs"])
def test_down_without_containerd_ends_plugins_of_either_driver(machine: Machine, settings: None, driver: str) -> None:
    restart(machine, MOORAGE_CGROUP_DRIVER=driver)
    machine.run(f"moorage create hello {EXAMPLES}/hello-volume && moorage enable hello")
    found = inspect(machine)
    # containerd is killed, and cannot be started again
    machine.run(
        f"systemctl stop moorage.service; kill -KILL $(cat {STATE}/containerd/pid); "
        "mv /usr/bin/containerd /usr/bin/containerd.gone"
    )
    try:
        said = machine.run("moorage down", check=False)
        assert "stopped 1 plugin" in said.stdout + said.stderr
        assert machine.run(f"test -e /proc/{found['Pid']}", check=False).returncode == 1
        machine.wait_until(
            lambda: machine.run(f"test -e {GROUPS}{found['ControlGroup']}", check=False).returncode == 1,
            "its control group goes",
        )
        assert machine.run("pgrep -f containerd-shim", check=False).stdout == ""
    finally:
        machine.run("mv /usr/bin/containerd.gone /usr/bin/containerd; systemctl start moorage.service")


def test_a_frozen_plugin_is_stopped(machine: Machine, volume_plugin: str) -> None:
    found = inspect(machine, volume_plugin)
    machine.run(f"echo 1 >{GROUPS}{found['ControlGroup']}/cgroup.freeze && moorage disable --force {volume_plugin}")
    assert machine.run(f"test -e /proc/{found['Pid']}", check=False).returncode == 1
    machine.run(f"moorage enable {volume_plugin}")
    found = inspect(machine, volume_plugin)
    machine.run(f"systemctl freeze {found['ControlGroup'].rpartition('/')[2]}", check=False)
    machine.run(f"moorage rm --force {volume_plugin}")
    assert machine.run(f"test -e {GROUPS}{found['ControlGroup']}", check=False).returncode == 1


def test_without_the_bus_the_runtime_creates_control_groups_and_one_warning_says_so(
    machine: Machine, settings: None
) -> None:
    start = cursor(machine)
    machine.run("mount --bind /dev/null /run/dbus/system_bus_socket")
    try:
        restart(machine)
        machine.run(f"moorage create hello {EXAMPLES}/hello-volume && moorage enable hello && moorage probe hello")
        assert inspect(machine)["ControlGroup"].startswith("/moorage/")
        said = messages_since(machine, start, "-p", "warning", "-u", "moorage.service")
        assert said.count("control groups of plugins are created without systemd: nothing answers at") == 1
        refused = machine.run(
            "moorage serve --root /var/tmp/none --exec-root /run/none --cgroup-driver systemd", check=False
        )
        assert refused.returncode not in (0, None)
        assert "cannot use systemd for the control groups of plugins: nothing answers" in refused.stderr
    finally:
        machine.run("umount /run/dbus/system_bus_socket; rm -rf /var/tmp/none /run/none", check=False)
