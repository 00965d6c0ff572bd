"""`moorage run` and `enable` give a plugin the same: the specs that containerd stores, and what it sees inside."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.foreground import LISTEN, Machine, make_plugin, wait_until
from support.machine_engine import EXEC_ROOT, MachineEngine, specs_of
from support.unresponsive_fuse import hanging_file_system

pytestmark = pytest.mark.real

OWN_ETC = "mount -t tmpfs etc /mnt && cp -a /etc/. /mnt/ && mount --move /mnt /etc"

# Prints what it sees, then listens on its socket, whose directory it does not make.
REPORT = """
import json, os, resource, signal, socket, stat, time
signal.signal(15, lambda *_: os._exit(7))
def read(path):
    try:
        return open(path).read()
    except OSError as error:
        return error.strerror
def owner(path):
    status = os.stat(path)
    return [status.st_uid, status.st_gid, stat.filemode(status.st_mode)]
status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
mounts = [line.split() for line in read("/proc/self/mountinfo").splitlines()]
below = [root for root, _, _ in os.walk("/run/docker/plugins")]
print(json.dumps({
    "status": {name: status[name].strip() for name in
        ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask")},
    "mounts": [[each[4], sorted(each[5].split(",")), sorted(field.split(":")[0] for field in each[6:each.index("-")])]
        for each in mounts],
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name[:7] == "RLIMIT_"},
    "environment": dict(os.environ), "directory": os.getcwd(), "oom": read("/proc/self/oom_score_adj"),
    "nice": os.nice(0), "names": [read("/etc/resolv.conf"), read("/etc/hosts")],
    "sockets": [[each, owner(each)] for each in below], "root": owner("/"), "devices": sorted(os.listdir("/dev")),
    "cgroup": [line.split(":", 2)[1:] for line in read("/proc/self/cgroup").splitlines()],
}), flush=True)
s = socket.socket(socket.AF_UNIX)
s.bind("/run/docker/plugins/" + SOCKET)
s.listen()
while True:
    s.accept()[0].close()
"""

CONFIGS: dict[str, dict[str, Any]] = {
    "host network without resolv.conf": {"network": {"type": "host"}},
    "socket in a subdirectory": {
        "interface": {"types": ["x/1.0"], "socket": "sub/dir/x.sock"},
        "user": {"uid": 1000, "gid": 1001},
    },
    "mounts and devices": {
        "propagatedMount": "/mnt/volumes",
        "mounts": [
            {"type": "bind", "source": "/etc", "destination": "/host/etc", "options": ["rbind", "ro"]},
            {"type": "tmpfs", "source": "tmpfs", "destination": "/scratch", "options": ["nosuid", "size=64k"]},
            {"type": "bind", "source": "/dev", "destination": "/host/dev", "options": ["rbind", "rslave"]},
        ],
        "linux": {"capabilities": ["CAP_SYS_ADMIN"], "devices": [{"path": "/dev/full"}], "allowAllDevices": True},
        "pidhost": True,
        "ipchost": True,
    },
}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(OWN_ETC) as made:
        made.do("rm -f /etc/resolv.conf")
        yield made


def without_names(value: object, *names: tuple[str, str]) -> Any:
    """A value as JSON with paths and ids that differ from run to run replaced."""
    text = json.dumps(value)
    for name, replacement in names:
        text = text.replace(name, replacement)
    return json.loads(text)


def by_run(machine: Machine, directory: Path) -> tuple[Any, Any]:
    """Spec and view of a plugin that `moorage run` runs."""
    run = machine.start(directory)
    run.until("ready")
    (exec_root,) = (str(each).partition("/root")[2] for each in machine.inside("/run").glob("moorage-run-*"))
    ((id, spec),) = specs_of(machine, f"{exec_root}/containerd/c.sock").items()
    names = ((id, "ID"), (id[:12], "SHORT"), (exec_root, "EXEC_ROOT"))
    view = json.loads(run.lines[0])
    assert run.end(signal.SIGINT) == 130
    return without_names(spec, *names), without_names(view, *names)


def by_enable(machine: Machine, directory: Path, log: Path) -> tuple[Any, Any]:
    """Spec and view of a plugin that an engine runs."""
    with MachineEngine(machine, log) as engine:
        engine.ok("create", "it", directory)
        engine.ok("enable", "it")
        ((container, spec),) = specs_of(machine, f"{EXEC_ROOT}/containerd/c.sock").items()
        id = container.partition(".")[0]
        machine.ids.add(id)
        wait_until(lambda: engine.lines("it"), "output")
        names = ((container, "ID"), (id, "ID"), (id[:12], "SHORT"), (EXEC_ROOT, "EXEC_ROOT"))
        return without_names(spec, *names), without_names(json.loads(engine.lines("it")[0]), *names)


@pytest.mark.parametrize("name", CONFIGS)
def test_i14_a_plugin_gets_the_same_from_run_and_from_enable(machine: Machine, tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    socket_name = config.get("interface", {}).get("socket", "it.sock")
    directory = make_plugin(tmp_path / "it", f"SOCKET = {socket_name!r}" + REPORT, **config)
    run_spec, run_view = by_run(machine, directory)
    enable_spec, enable_view = by_enable(machine, directory, tmp_path / "log")
    assert run_spec == enable_spec
    assert run_view == enable_view


FILES = """
import json, os
def described(path):
    status = os.lstat(path)
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("trusted.")]
    attributes = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    is_directory = os.path.isdir(path)
    return [oct(status.st_mode), status.st_uid, status.st_gid, status.st_rdev, attributes,
        None if is_directory else [status.st_size, status.st_nlink, status.st_mtime_ns // 10**9]]
paths = [os.path.join(directory, name) for directory, names, files in os.walk("/own") for name in [*names, *files]]
print(json.dumps({path: described(path) for path in ["/", "/own", *paths]}), flush=True)
"""
CAP_NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")  # security.capability, version 2


def make_files(root: Path) -> None:
    """A root that only its owner can enter, with a file of each kind that a package can have."""
    own = root / "own"
    own.mkdir()
    (own / "program").write_text("x")
    os.chown(own / "program", 5, 6)
    (own / "program").chmod(0o6755)
    (own / "capable").write_text("x")
    os.setxattr(own / "capable", "security.capability", CAP_NET_RAW)
    os.utime(own / "capable", (10**9, 10**9))
    os.link(own / "program", own / "hard link")
    (own / "link").symlink_to("program")
    os.mkfifo(own / "fifo")
    os.mknod(own / "null", 0o20666, os.makedev(1, 3))
    (own / "sticky").mkdir()
    (own / "sticky").chmod(0o1777)
    (own / "private").mkdir(mode=0o700)
    os.chown(own / "private", 9, 9)
    os.chown(root, 1000, 1000)
    root.chmod(0o700)


def test_i14_the_files_of_a_root_are_the_same_by_both(machine: Machine, tmp_path: Path) -> None:
    program = FILES + LISTEN + "while True: s.accept()[0].close()\n"
    directory = make_plugin(tmp_path / "it", program, user={"uid": 1001})
    make_files(directory / "rootfs")
    _, by_run_files = by_run(machine, directory)
    _, by_enable_files = by_enable(machine, directory, tmp_path / "log")
    assert by_run_files == by_enable_files
    assert by_run_files["/"][:3] == ["0o40755", 0, 0]
    status = (directory / "rootfs").stat()
    assert (status.st_mode & 0o7777, status.st_uid) == (0o700, 1000), "the directory of the author is not touched"


def test_i14_a_socket_in_a_subdirectory_accepts_connections_by_both(machine: Machine, tmp_path: Path) -> None:
    interface = {"types": ["x/1.0"], "socket": "sub/dir/x.sock"}
    directory = make_plugin(tmp_path / "it", "SOCKET = 'sub/dir/x.sock'" + REPORT, interface=interface)
    run = machine.start(directory)
    run.until("ready")
    assert run.accepts()
    assert run.end(signal.SIGINT) == 130
    with MachineEngine(machine, tmp_path / "log") as engine:
        engine.ok("create", "it", directory)
        engine.ok("enable", "it")
        (found,) = machine.inside(f"{EXEC_ROOT}/p").glob("*/s/sub/dir/x.sock")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(found))
        machine.ids |= {each.partition(".")[0] for each in specs_of(machine, f"{EXEC_ROOT}/containerd/c.sock")}


def test_i14_a_mount_source_that_does_not_answer_is_refused_by_both(tmp_path: Path) -> None:
    source = tmp_path / "hung"
    source.mkdir()
    mount = {"name": "m", "type": "bind", "source": f"{source}/x", "destination": "/m", "options": ["rbind"]}
    directory = make_plugin(tmp_path / "it", "SOCKET = 'it.sock'" + REPORT, mounts=[mount])
    refusal = f"cannot check {source}/x, mount m (on /m): no answer within"
    with hanging_file_system(source), Machine() as machine:
        done = machine.moorage("run", directory)
        assert (done.returncode, done.stdout) == (1, "")
        assert refusal in done.stderr
        with MachineEngine(machine, tmp_path / "log") as engine:
            engine.ok("create", "it", directory)
            done = engine.run("enable", "it")
            assert done.returncode == 1
            assert refusal in done.stderr
