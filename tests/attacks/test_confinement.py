"""Confinement, measured from inside a plugin: what was not granted is refused, what was granted works."""

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.runs.host_security import HostSecurity
from support.attempts import add_attempts, attempt, attempts_tar, read_inside, sender_to, status_inside, write_inside
from support.engines import EngineProcess, Refused, engine
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.needs("static-cc")]

DOCKER = 0xA80425FB
MINIMAL = DOCKER & ~(1 << 27 | 1 << 13 | 1 << 29)  # MKNOD, NET_RAW, AUDIT_WRITE
SYS_ADMIN: dict[str, Any] = {"linux": {"capabilities": ["CAP_SYS_ADMIN"]}}
REFUSED = (
    "keyctl", "add_key", "userfaultfd", "io_uring", "unshare-user", "unshare-mount", "clone-user", "bpf", "mount",
    "setns", "perf", "init-module", "kexec", "handle", "settimeofday",
)  # fmt: skip


@pytest.fixture(scope="module", params=["each", "shared"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine with a shim for each plugin, and one with a shim for all."""
    with engine(tmp_path_factory.mktemp("engine"), shim=request.param) as made:
        yield made


@pytest.fixture
def house(shared: EngineProcess) -> Iterator[EngineProcess]:
    yield shared
    for plugin in shared.plugins():
        shared.remove(plugin["Name"], force=True)


def moorage(house: EngineProcess, *words: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=limit(60))


def restart(house: EngineProcess, name: str, policy: dict[str, Any]) -> None:
    """Change the policy of a plugin and start it with that."""
    house.request_own("PUT", name, "policy", policy)
    house.request_own("POST", name, "restart")


def test_x01_x02_x03_the_default_is_confined(house: EngineProcess) -> None:
    add_attempts(house, "p")
    status = status_inside(house, "p")
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == DOCKER
    assert {what: attempt(house, "p", what) for what in REFUSED} == dict.fromkeys(REFUSED, errno.EPERM)
    assert attempt(house, "p", "clone3") == errno.ENOSYS
    assert attempt(house, "p", "unknown") == errno.ENOSYS
    assert attempt(house, "p", "vsock") in (errno.ENOSYS, errno.EPERM)
    group = next(each for each in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup") if Path(each, "cgroup.procs").exists())
    own = (
        read_inside(house, "p", "/proc/self/cgroup").splitlines()[-1].partition("::")[2]
    )  # version 2 shows the whole tree
    assert "2048" in [read_inside(house, "p", f"{each}/pids.max").strip() for each in (group, f"{group}{own}")]
    for what in ("thread", "chroot", "ptrace-child", "mknod", "raw-socket"):
        assert attempt(house, "p", what) == 0, what
    assert house.more("p")["Widenings"] == []


def test_x01_a_plugin_that_was_granted_sys_admin_mounts(house: EngineProcess) -> None:
    add_attempts(house, "p", **SYS_ADMIN)
    assert status_inside(house, "p")["Seccomp"] == "2"
    for what in ("mount", "unshare-mount", "setns"):
        assert attempt(house, "p", what) == 0, what
    for what in ("keyctl", "userfaultfd", "io_uring", "init-module", "settimeofday"):
        assert attempt(house, "p", what) == errno.EPERM, what


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="a kernel without FUSE")
def test_x01_a_volume_plugin_with_fuse_mounts_below_its_propagated_mount(house: EngineProcess) -> None:
    devices = {"devices": [{"path": "/dev/fuse"}]}
    add_attempts(house, "p", propagatedmount="/mnt", linux={**SYS_ADMIN["linux"], **devices})
    assert attempt(house, "p", "fuse") == 0
    add_attempts(house, "q", propagatedmount="/mnt", linux=devices)
    assert attempt(house, "q", "fuse") == errno.EPERM
    house.request_own("PUT", "p", "policy", {"read_only": True, "init": True, "capabilities": "minimal"})
    house.request_own("POST", "p", "restart")
    assert attempt(house, "p", "fuse") == 0


def test_x01_x02_x04_a_run_in_the_foreground_is_confined_the_same_way(tmp_path: Path) -> None:
    directory = tmp_path / "it"
    with tarfile.open(fileobj=io.BytesIO(attempts_tar())) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Debian 12's Python has none
        archive.extractall(directory)
    command = [sys.executable, "-m", "moorage", "--json", "run", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = {}
        for line in child.stdout:
            event = json.loads(line)
            seen[event["event"]] = event
            if event["event"] == "ready":
                break
        try:
            send = sender_to(Path(seen["started"]["socket"]))
            status = send("read/proc/self/status")
            outcomes = {what: int(send(f"try/{what}")) for what in REFUSED}
            limits = send("read/proc/self/limits")
        finally:
            child.terminate()
            child.stdout.read()
    assert "Seccomp:\t2\n" in status
    assert "NoNewPrivs:\t1\n" in status
    assert outcomes == dict.fromkeys(REFUSED, errno.EPERM)
    assert "Max core file size        0 " in limits


def test_x01_a_plugin_among_the_processes_of_the_host_traces_none_of_them(house: EngineProcess) -> None:
    add_attempts(house, "p", pidhost=True)
    victim = os.getpid()
    assert attempt(house, "p", f"ptrace/{victim}") == errno.EPERM
    assert attempt(house, "p", "ptrace-child") == errno.EPERM
    add_attempts(house, "q", pidhost=True, linux={"capabilities": ["CAP_SYS_PTRACE"]})
    assert attempt(house, "q", "ptrace-child") == 0


def test_x01_unconfined_is_a_widening_that_is_shown(house: EngineProcess) -> None:
    add_attempts(house, "p")
    restart(house, "p", {"seccomp": "unconfined"})
    assert status_inside(house, "p")["Seccomp"] == "0"
    assert attempt(house, "p", "unshare-user") == 0
    assert attempt(house, "p", "unshare-mount") == errno.EPERM, "what needs a capability is still refused"
    assert [each["Name"] for each in house.more("p")["Widenings"]] == ["seccomp"]


def test_x02_new_privileges_are_allowed_where_that_is_requested(house: EngineProcess) -> None:
    add_attempts(house, "p", policy={"new_privileges": True})
    assert status_inside(house, "p")["NoNewPrivs"] == "0"
    assert [each["Name"] for each in house.more("p")["Widenings"]] == ["new privileges"]
    restart(house, "p", {"new_privileges": False})
    assert status_inside(house, "p")["NoNewPrivs"] == "1"


def test_x02_a_set_uid_program_gains_nothing_unless_that_is_allowed(house: EngineProcess) -> None:
    add_attempts(house, "p", user={"uid": 1000, "gid": 1000})
    assert attempt(house, "p", "is-root") == errno.EPERM
    assert attempt(house, "p", "set-uid") == errno.EPERM
    restart(house, "p", {"new_privileges": True})
    assert attempt(house, "p", "set-uid") == 0
    assert attempt(house, "p", "is-root") == errno.EPERM


def test_x03_minimal_capabilities_leave_out_three_and_keep_what_the_config_requests(house: EngineProcess) -> None:
    add_attempts(house, "p", policy={"capabilities": "minimal"})
    status = status_inside(house, "p")
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == MINIMAL
    assert (attempt(house, "p", "mknod"), attempt(house, "p", "raw-socket")) == (errno.EPERM, errno.EPERM)
    add_attempts(house, "q", policy={"capabilities": "minimal"}, linux={"capabilities": ["mknod"]})
    assert int(status_inside(house, "q")["CapEff"], 16) == MINIMAL | 1 << 27
    assert attempt(house, "q", "mknod") == 0


def test_x04_a_fork_bomb_stops_at_the_limit_which_changes_while_it_runs(house: EngineProcess) -> None:
    add_attempts(house, "p", policy={"pids": 64})
    assert house.request_own("GET", "p", "stats")["PidsLimit"] == 64
    assert int(house.call("p", "fork/500")) == 63
    run = house.more("p")["Pid"]
    house.request_own("PUT", "p", "policy", {"pids": 100})
    assert int(house.call("p", "fork/500")) == 36
    stats = house.request_own("GET", "p", "stats")
    assert (stats["Pids"], stats["PidsLimit"]) == (100, 100)
    assert house.more("p")["Pid"] == run
    house.request_own("PUT", "p", "policy", {"pids": 0})
    assert house.request_own("GET", "p", "stats")["PidsLimit"] is None


def test_x04_memory_and_processors_are_limited_while_it_runs_and_at_the_next_start(house: EngineProcess) -> None:
    add_attempts(house, "p")
    before = house.request_own("GET", "p", "stats")
    assert (before["MemoryLimitBytes"], before["CpusLimit"], before["PidsLimit"]) == (None, None, 2048)
    house.request_own("PUT", "p", "policy", {"memory_bytes": 64 << 20, "cpus": 0.5})
    for _ in range(2):
        stats = house.request_own("GET", "p", "stats")
        assert (stats["MemoryLimitBytes"], stats["CpusLimit"]) == (64 << 20, 0.5)
        house.request_own("POST", "p", "restart")
    _, metrics = house.request("GET", "/moorage/v1/metrics")
    assert b'moorage_plugin_memory_limit_bytes{plugin="p:latest"} 6.7108864e+07' in metrics
    assert b'moorage_plugin_cpus_limit{plugin="p:latest"} 0.5' in metrics
    house.request_own("PUT", "p", "policy", {"memory_bytes": 0, "cpus": 0})
    stats = house.request_own("GET", "p", "stats")
    assert (stats["MemoryLimitBytes"], stats["CpusLimit"]) == (None, None)


def test_case_215_limits_are_defined_and_not_the_starters(tmp_path: Path) -> None:
    starter = EngineProcess(tmp_path)

    def limits(house: EngineProcess, name: str) -> dict[str, str]:
        lines = read_inside(house, name, "/proc/self/limits").splitlines()[1:]
        return {line[:26].strip(): " ".join(line[26:].split()[:2]) for line in lines}

    def niceness(house: EngineProcess, name: str) -> str:
        return read_inside(house, name, "/proc/self/stat").rpartition(")")[2].split()[16]

    before = os.getpriority(os.PRIO_PROCESS, 0), resource.getrlimit(resource.RLIMIT_NOFILE)
    adjustment = Path("/proc/self/oom_score_adj")
    try:
        # what an unlucky unit file gives to everything that it starts
        os.setpriority(os.PRIO_PROCESS, 0, 5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1][1]))
        adjustment.write_text("100")
        starter.start()
    finally:
        adjustment.write_text("0")
        resource.setrlimit(resource.RLIMIT_NOFILE, before[1])
        os.setpriority(os.PRIO_PROCESS, 0, before[0])
    try:
        add_attempts(starter, "p")
        seen = limits(starter, "p")
        hard = min(1 << 20, before[1][1]) if before[1][1] != -1 else 1 << 20
        assert seen["Max open files"] in (f"{hard} {hard}", "1048576 1048576")
        assert seen["Max core file size"] == "0 unlimited"
        assert seen["Max stack size"] == "8388608 unlimited"
        assert niceness(starter, "p") == "0"
        assert read_inside(starter, "p", "/proc/self/oom_score_adj").strip() == "0"
        add_attempts(
            starter, "q", policy={"nice": 7, "oom_score_adj": 300, "rlimits": {"nofile": [100, 200], "core": [1, 2]}}
        )
        seen = limits(starter, "q")
        assert (seen["Max open files"], seen["Max core file size"]) == ("100 200", "1 2")
        assert niceness(starter, "q") == "7"
        assert read_inside(starter, "q", "/proc/self/oom_score_adj").strip() == "300"
    finally:
        starter.close()


def test_x05_an_init_program_reaps_orphans_and_without_one_they_are_counted(house: EngineProcess) -> None:
    add_attempts(house, "p")
    house.call("p", "orphan")
    wait_until(lambda: house.request_own("GET", "p", "stats")["Zombies"] == 1, "the zombie")
    house.request_own("PUT", "p", "policy", {"cpus": 0.5})
    row = moorage(house, "stats", "--once", "p").stdout.splitlines()[1]
    assert "2/2048 (1 zombie)" in row
    assert "/50 " in row
    add_attempts(house, "q", policy={"init": True})
    house.call("q", "orphan")
    wait_until(lambda: house.request_own("GET", "q", "stats")["Pids"] == 2, "the orphan to be reaped")
    assert house.request_own("GET", "q", "stats")["Zombies"] == 0
    assert read_inside(house, "q", "/proc/1/cmdline").split("\0")[0] == "/.moorage-init"
    (bound,) = [
        line for line in read_inside(house, "q", "/proc/self/mountinfo").splitlines() if " /.moorage-init " in line
    ]
    assert bound.split()[5].split(",")[0] == "ro"
    house.disable("q")
    assert house.more("q")["LastExit"] is None


def test_x05_with_an_init_program_a_wrong_entrypoint_is_still_explained(house: EngineProcess) -> None:
    add_attempts(house, "p", enable=False, policy={"init": True}, entrypoint=["/absent"])
    with pytest.raises(Refused, match=r"there is no /absent in the plugin"):
        house.enable("p")
    add_attempts(house, "q", enable=False, policy={"init": True}, pidhost=True)
    with pytest.raises(Refused, match="cannot add an init program: the plugin shares the PID namespace"):
        house.enable("q")


def test_x07_a_read_only_root_has_what_programs_write_to(house: EngineProcess) -> None:
    add_attempts(house, "p", propagatedmount="/mnt", policy={"read_only": True})
    assert write_inside(house, "p", "/file") == errno.EROFS
    for path in ("/run/file", "/tmp/file", "/var/tmp/file", "/mnt/file", "/run/docker/plugins/file", "/dev/shm/file"):
        assert write_inside(house, "p", path) == 0, path
    restart(house, "p", {"read_only": False})
    assert write_inside(house, "p", "/file") == 0


def test_x08_root_inside_is_an_unprivileged_user_on_the_host(house: EngineProcess) -> None:
    add_attempts(house, "p", policy={"userns": "auto"}, linux={"capabilities": ["CAP_SYS_ADMIN"]})
    first, host, count = map(int, read_inside(house, "p", "/proc/self/uid_map").split())
    assert (first, count) == (0, 65536)
    assert host >= 0x70000000
    pid = house.more("p")["Pid"]
    assert os.stat(f"/proc/{pid}").st_uid == host
    assert status_inside(house, "p")["Uid"].split() == ["0"] * 4
    assert write_inside(house, "p", "/file") == 0
    assert write_inside(house, "p", "/run/docker/plugins/file") == 0
    assert os.stat(house.request_own("GET", "p", "path?path=/file")["Path"]).st_uid == host
    assert attempt(house, "p", "mount") == 0, "root of its namespace mounts in it"
    for what in ("mknod", "settimeofday", "init-module"):
        assert attempt(house, "p", what) == errno.EPERM, what
    for directory in (house.exec_root / "p", house.exec_root / "p" / house.inspect("p")["Id"][:12]):
        assert directory.stat().st_mode & 0o777 == 0o700
    view = house.exec_root / "u" / house.inspect("p")["Id"][:12] / "r"
    assert (view.is_mount(), list(view.iterdir())) == (False, []), "the root is bound there for a start only"
    add_attempts(house, "q", policy={"userns": "auto"})
    assert int(read_inside(house, "q", "/proc/self/uid_map").split()[1]) != host, "each has ids of its own"


def test_x08_a_user_of_the_config_and_one_that_outlives_the_engine(tmp_path: Path) -> None:
    with engine(tmp_path) as house:
        add_attempts(house, "p", policy={"userns": "auto"}, user={"uid": 1000, "gid": 1000})
        host = int(read_inside(house, "p", "/proc/self/uid_map").split()[1])
        pid = house.more("p")["Pid"]
        assert os.stat(f"/proc/{pid}").st_uid == host + 1000
        assert write_inside(house, "p", "/run/docker/plugins/file") == 0
        assert write_inside(house, "p", "/file") == errno.EACCES
        house.end(signal.SIGKILL)
        house.start()
        house.until("p", "ready")
        assert house.more("p")["Pid"] == pid
        house.crash("p", 3)
        house.until_restarted("p", 1)
        assert int(read_inside(house, "p", "/proc/self/uid_map").split()[1]) == host
        house.disable("p")
        house.enable("p")
        assert status_inside(house, "p")["Uid"].split() == ["1000"] * 4


def test_x08_files_keep_their_owners_over_every_change(house: EngineProcess) -> None:
    add_attempts(house, "p")
    assert write_inside(house, "p", "/before") == 0

    def owner(path: str) -> int:
        return int(house.call("p", f"owner{path}"))

    for userns in ("auto", "host", "auto"):
        restart(house, "p", {"userns": userns})
        assert read_inside(house, "p", "/proc/self/uid_map").split()[1] == "0" or userns == "auto"
        for path in ("/before", "/attempts", "/mnt", "/"):
            assert owner(path) == 0, (path, userns)
        assert write_inside(house, "p", "/before") == 0
        assert write_inside(house, "p", f"/{userns}") == 0
    house.crash("p", 3)
    house.until_restarted("p", 1)
    assert owner("/host") == 0
    assert write_inside(house, "p", "/host") == 0


def test_x08_a_crash_after_a_change_starts_it_with_the_new_namespace(house: EngineProcess) -> None:
    add_attempts(house, "p")
    for userns in ("auto", "host"):
        house.request_own("PUT", "p", "policy", {"userns": userns})
        restarts = house.more("p")["Restarts"]
        house.crash("p", 3)
        house.until_restarted("p", restarts + 1)
        assert (read_inside(house, "p", "/proc/self/uid_map").split()[1] == "0") is (userns == "host")
        assert write_inside(house, "p", "/attempts-are-ours") == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"propagatedmount": "/mnt"}, "what it mounts below /mnt would not reach the host"),
        ({"mounts": [{"source": "/srv", "destination": "/s", "type": "bind", "options": ["rbind"]}]}, "it mounts /srv"),
        ({"linux": {"devices": [{"path": "/dev/null"}]}}, "it uses device /dev/null"),
        ({"linux": {"allowAllDevices": True}}, "it uses all devices"),
        ({"network": {"type": "host"}}, "it shares the network of the host"),
        ({"pidhost": True}, "it shares the PID or IPC namespace"),
        ({"ipchost": True}, "it shares the PID or IPC namespace"),
    ],
)
def test_x08_a_plugin_that_needs_the_host_is_refused_with_the_reason(
    house: EngineProcess, fields: dict[str, Any], reason: str
) -> None:
    add_attempts(house, "p", enable=False, **fields)
    with pytest.raises(Refused, match=f"400: cannot give the plugin a user namespace of its own: {reason}"):
        house.request_own("PUT", "p", "policy", {"userns": "auto"})


def test_x03_x04_the_defaults_of_an_engine_apply_where_a_policy_says_nothing(tmp_path: Path) -> None:
    defaults = {"capabilities": "minimal", "pids": 50, "memory_bytes": 128 << 20, "cpus": 0.25}
    with engine(tmp_path, confinement=defaults) as house:
        add_attempts(house, "p")
        assert int(status_inside(house, "p")["CapBnd"], 16) == MINIMAL
        stats = house.request_own("GET", "p", "stats")
        assert (stats["PidsLimit"], stats["MemoryLimitBytes"], stats["CpusLimit"]) == (50, 128 << 20, 0.25)
        add_attempts(house, "q", policy={"capabilities": "docker", "pids": 0})
        assert int(status_inside(house, "q")["CapBnd"], 16) == DOCKER
        assert house.request_own("GET", "q", "stats")["PidsLimit"] is None


def test_x01_x02_a_host_grants_nothing_unattended_that_its_policy_does_not_name(tmp_path: Path) -> None:
    with engine(tmp_path, policy={"seccomp": ["unconfined"]}) as house:
        add_attempts(house, "p", enable=False)
        house.request_own("PUT", "p", "policy", {"seccomp": "unconfined"})
        with pytest.raises(Refused, match=r"403: cannot grant unattended: .* new privileges \[true\]"):
            house.request_own("PUT", "p", "policy", {"new_privileges": True})
        with pytest.raises(Refused, match=r"403: .* apparmor \[unconfined\]"):
            house.request_own("PUT", "p", "policy", {"apparmor": "unconfined"})
        assert house.more("p")["Policy"]["NewPrivileges"] is False
        house.request_own("PUT", "p", "policy", {"new_privileges": True, "attended": True})
        house.request_own("PUT", "p", "policy", {"pids": 100})
        house.enable("p")
        house.disable("p")
        house.end()
        house.serve_options["policy"] = {}
        house.start()
        with pytest.raises(Refused, match=r"403: .*does not allow seccomp \[unconfined\]$"):
            house.enable("p")
        house.request_own("PUT", "p", "policy", {"seccomp": "default"})
        house.enable("p")


@pytest.mark.parametrize("what", ["keyctl", "unshare-user", "mount"])
def test_x01_a_process_that_is_added_is_confined_like_the_first(house: EngineProcess, what: str) -> None:
    add_attempts(house, "p")
    done = moorage(house, "exec", "p", "/attempts", what)
    assert (done.returncode, done.stdout.strip()) == (0, str(errno.EPERM)), done.stderr


def test_x01_x02_the_command_prompts_before_it_widens_and_shows_it(house: EngineProcess) -> None:
    add_attempts(house, "p", enable=False)
    refused = moorage(house, "policy", "p", "--seccomp", "unconfined")
    assert refused.returncode == 1
    assert "standard input is not a terminal; give --grant-all-permissions" in refused.stderr
    assert moorage(house, "policy", "p", "--allow-new-privileges", given="n\n").returncode == 1
    assert house.more("p")["Widenings"] == []
    assert "WIDENED BY" not in moorage(house, "ls").stdout
    granted = moorage(house, "policy", "p", "--seccomp", "unconfined", given="y\n")
    assert granted.returncode == 0, granted.stderr
    assert moorage(house, "policy", "p", "--allow-new-privileges", "--grant-all-permissions").returncode == 0
    head, row = moorage(house, "ls").stdout.splitlines()
    assert head.endswith("WIDENED BY")
    assert row.endswith("seccomp: unconfined, new privileges: true")
    narrowed = moorage(house, "policy", "p", "--seccomp", "default", "--no-new-privileges", "--memory", "1.5g")
    assert "seccomp         default" in narrowed.stdout
    assert house.more("p")["Policy"]["MemoryBytes"] == 3 << 29
    assert narrowed.stderr == ""
    house.enable("p")
    assert moorage(house, "policy", "p", "--memory", "0", "--pids", "64").stderr == ""
    later = moorage(house, "policy", "p", "--nice", "3")
    assert later.stderr == "moorage: applies from the next start: moorage restart p\n"
    assert house.more("p")["Widenings"] == []


def test_x03_x04_x07_case_215_a_file_that_is_applied_has_the_whole_policy(house: EngineProcess, tmp_path: Path) -> None:
    add_attempts(house, "p", enable=False)
    file = tmp_path / "plugins.yaml"
    file.write_text(
        "plugins:\n- reference: p:latest\n  enabled: false\n  policy:\n    memory: 64m\n    cpus: 0.5\n    pids: 64\n"
        "    capabilities: minimal\n    read-only: true\n    init: yes\n    nice: -3\n    oom-score-adj: 5\n"
        "    ulimits: {nofile: '10:20', core: unlimited}\n    allow-new-privileges: true\n    seccomp: unconfined\n"
    )
    shown = moorage(house, "apply", "--dry-run", "-f", str(file)).stdout
    assert "policy seccomp: default -> unconfined" in shown
    done = moorage(house, "apply", "-f", str(file))
    policy = house.more("p")["Policy"]
    desired = {
        "MemoryBytes": 64 << 20,
        "Cpus": 0.5,
        "Pids": 64,
        "Capabilities": "minimal",
        "ReadOnly": True,
        "Init": True,
    }
    assert {key: policy[key] for key in desired} == desired, done
    assert (policy["Nice"], policy["OomScoreAdj"]) == (-3, 5)
    assert (policy["Rlimits"]["nofile"], policy["Rlimits"]["core"]) == ([10, 20], [-1, -1])
    assert [each["Name"] for each in house.more("p")["Widenings"]] == ["seccomp", "new privileges"]
    again = moorage(house, "apply", "-f", str(file)).stdout
    assert "policy" not in again
    file.write_text("plugins:\n- reference: p:latest\n  policy:\n    memory: much\n")
    assert (
        "plugins.yaml:4: plugins[0].policy.memory: 'much' is not a size"
        in moorage(house, "apply", "-f", str(file)).stderr
    )


def test_x06_a_profile_of_apparmor_is_refused_where_there_is_no_apparmor(house: EngineProcess) -> None:
    if Path("/sys/module/apparmor/parameters/enabled").exists():
        assert Path("/sys/module/apparmor/parameters/enabled").read_text().strip() in "YN"
    add_attempts(house, "p", enable=False, policy={"apparmor": "some-profile"})
    assert [each["Name"] for each in house.more("p")["Widenings"]] == ["apparmor"]
    with pytest.raises(Refused, match=r"some-profile"):
        house.enable("p")


@pytest.mark.skipif(
    HostSecurity().has_apparmor(), reason="tests/machines/test_apparmor.py has what a kernel with AppArmor does"
)
def test_x06_unconfined_is_no_obstacle_where_there_is_no_apparmor(house: EngineProcess) -> None:
    add_attempts(house, "p", enable=False, policy={"apparmor": "unconfined"})
    house.enable("p")
    assert attempt(house, "p", "thread") == 0
    assert {each["AppArmor"] for each in house.more("p")["Processes"]} == {""}
