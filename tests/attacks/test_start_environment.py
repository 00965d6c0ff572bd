"""Row S11, cases 214 and 215: who starts the engine, and with which umask, limits and signals, changes nothing."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.engines import EngineProcess, actor, config, engine
from support.limits import limit
from support.local_user import USER

pytestmark = [pytest.mark.needs("static-cc")]


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def files_of(house: EngineProcess) -> list[Path]:
    """Everything that the engine and its containerd made, but what is a plugin's own and the layers'."""
    tops = (house.root, house.exec_root)
    found = [path for top in tops for path in (top, *top.rglob("*")) if not path.is_symlink()]
    expected = {"snapshots", "root", "s", "propagated-mount"}
    return [path for path in found if not expected & set(path.relative_to(path.anchor).parts[2:]) or path.name == "s"]


@pytest.mark.parametrize("value", [0o000, 0o022, 0o077, 0o777])
def test_s11_case_214_nothing_of_the_engine_can_be_written_by_others_whatever_the_umask(
    tmp_path: Path, value: int
) -> None:
    with umask(value):
        made = EngineProcess(tmp_path)
        made.start()
    try:
        made.create("p", config(propagatedMount="/data", user={"uid": USER, "gid": USER}))
        made.enable("p")
        writable = [path for path in files_of(made) if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o002]
        assert writable == []
        assert stat.S_IMODE(made.socket.stat().st_mode) == 0o660
        assert stat.S_IMODE(made.exec_root.stat().st_mode) & 0o022 == 0
        configuration = made.exec_root / "containerd" / "config.toml"
        assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    finally:
        made.close()


@pytest.mark.parametrize("value", [0o000, 0o027, 0o077, 0o777])
def test_case_214_a_plugin_with_a_user_can_read_its_own_root_whatever_the_umask(tmp_path: Path, value: int) -> None:
    with umask(value):
        made = EngineProcess(tmp_path)
        made.start()
    try:
        made.create("p", config(user={"uid": USER, "gid": USER}), **{"usr/share/deep/file": b"x"})
        made.enable("p")
        root = Path(f"/proc/{made.more('p')['Pid']}/root")
        for path in (root, root / "usr", root / "usr/share/deep"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o755, path
        assert stat.S_IMODE((root / "usr/share/deep/file").stat().st_mode) == 0o644
    finally:
        made.close()


def test_s13_files_that_may_contain_secrets_are_for_root_only_by_their_own_mode(tmp_path: Path) -> None:
    with engine(tmp_path) as made:
        made.create("p", config(env=[{"name": "TOKEN", "settable": ["value"], "value": "hush"}]))
        made.enable("p")
        specs = list((made.exec_root / "containerd").rglob("config.json"))
        database = made.root / "containerd" / "io.containerd.metadata.v1.bolt" / "meta.db"
        records = list((made.root / "plugins").glob("*/plugin.json"))
        assert specs
        assert records
        for path in (*specs, database, *records, made.root / "containerd" / "containerd.log"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_s11_a_directory_that_others_can_write_is_closed_at_each_start(tmp_path: Path) -> None:
    with engine(tmp_path) as made:
        made.end()
        for directory in (made.root, made.exec_root, made.exec_root / "containerd", made.root / "containerd"):
            directory.chmod(0o777)
        made.start()
        for directory in (made.root, made.exec_root, made.exec_root / "containerd", made.root / "containerd"):
            assert stat.S_IMODE(directory.stat().st_mode) & 0o022 == 0, directory
        assert "could be written to by other users" in made.log.read_text()


def test_s11_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    made = EngineProcess(tmp_path)
    made.root.mkdir()
    os.chown(made.root, USER, USER)
    made.child = made._popen("serve")
    try:
        assert made.child.wait(limit(30)) != 0
        assert f"belongs to user {USER}" in made.log.read_text()
    finally:
        made.child = None


def test_case_215_priority_limits_and_ignored_signals_of_the_starter_do_not_reach_a_plugin(tmp_path: Path) -> None:
    """As from a shell with nice and nohup, a small limit of open files and a score that makes it the first to go."""
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text(), resource.getrlimit(resource.RLIMIT_NOFILE)
    handlers = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGHUP, signal.SIGUSR1)}
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        score.write_text("500")
        os.setpriority(os.PRIO_PROCESS, 0, 7)
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1][1]))
        made = EngineProcess(tmp_path)
        made.start()
    finally:
        score.write_text(before[0])
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        resource.setrlimit(resource.RLIMIT_NOFILE, before[1])
        for number, handler in handlers.items():
            signal.signal(number, handler)
    try:
        made.create("p")
        made.enable("p")
        pid = made.more("p")["Pid"]
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert int(status["SigIgn"], 16) & (1 << (signal.SIGHUP - 1) | 1 << (signal.SIGUSR1 - 1)) == 0
        assert int(status["SigBlk"], 16) == 0
        assert os.getpriority(os.PRIO_PROCESS, pid) == 0
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] >= 1024
        containerd = int((made.exec_root / "containerd" / "pid").read_text().split()[0])
        assert os.getpriority(os.PRIO_PROCESS, containerd) == 0
        assert resource.prlimit(containerd, resource.RLIMIT_NOFILE)[0] > 300
        assert Path(f"/proc/{containerd}/oom_score_adj").read_text().strip() in ("-999", "0")  # by CAP_SYS_RESOURCE
    finally:
        made.close()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("limit", "value"),
    [
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_AS, 4 << 30),
        (resource.RLIMIT_DATA, 2 << 30),
        (resource.RLIMIT_CPU, 3600),
        (resource.RLIMIT_NPROC, 5000),
    ],
    ids=["file size", "memory", "data", "processor time", "processes"],
)
def test_case_215_a_soft_limit_of_the_parent_has_no_effect(tmp_path: Path, limit: int, value: int) -> None:
    before = resource.getrlimit(limit)
    made = EngineProcess(tmp_path)
    resource.setrlimit(limit, (value, before[1]))
    try:
        made.start()
    finally:
        resource.setrlimit(limit, before)
    try:
        made.create("p")
        made.enable("p")
        containerd = int((made.exec_root / "containerd" / "pid").read_text().split()[0])
        assert made.child is not None
        for pid in (containerd, made.child.pid, made.more("p")["Pid"]):
            soft, hard = resource.prlimit(pid, limit)
            assert soft == hard != value
    finally:
        made.close()


def test_case_214_run_gives_a_plugin_the_same_whatever_the_umask(tmp_path: Path) -> None:
    directory = tmp_path / "plugin"
    (directory / "rootfs").mkdir(parents=True)
    (directory / "rootfs" / "actor").write_bytes(actor())
    for path, mode in ((directory / "rootfs", 0o755), (directory / "rootfs" / "actor", 0o755)):
        path.chmod(mode)
    document = config("end=0@300", user={"uid": USER, "gid": USER})
    (directory / "config.json").write_text(json.dumps(document))
    said = []
    for value in (0o000, 0o077):
        with umask(value):
            command = [sys.executable, "-m", "moorage", "--json", "run", str(directory)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(60))
        said.append((done.returncode, [json.loads(line)["event"] for line in done.stdout.splitlines()]))
    assert said[0] == said[1]
    assert "ready" in said[0][1]


def test_case_215_the_bus_of_a_login_is_for_no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """crun would have that user's systemd create the control group of a plugin, and end it when the user logs out."""
    program, calls = tmp_path / "runtime", tmp_path / "calls"
    program.write_text(
        f'#!/bin/sh\n{{ echo "called: $*"; env; }} >>{calls}\nexec {os.environ["MOORAGE_RUNTIME"]} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/0/bus")
    with engine(tmp_path, runtime=str(program)) as made:
        made.create("p")
        made.enable("p")
        made.disable("p")
    text = calls.read_text()
    assert {"--version", "create", "delete"} <= set(text.split())
    assert "/run/user" not in text
