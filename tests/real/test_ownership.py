"""What an engine owns: two engines and other programs on one containerd, and directories that no record names."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from moorage import errors, open_executor
from support.conditions import eventually
from support.engines import EngineProcess
from support.executor_process import executor_process
from support.limits import limit
from support.sinks import Exits, Memory
from support.specs import FOREVER
from support.workspace import Session, Workspace

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

_numbers = count(1)


@pytest.fixture
def namespace() -> str:
    return f"own-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def first(session: Session, tmp_path: Path, namespace: str) -> Iterator[EngineProcess]:
    """An engine on the session's containerd."""
    made = engine_on(session, tmp_path / "first", namespace)
    try:
        yield made.start()
    finally:
        finish(made)


def engine_on(session: Session, base: Path, namespace: str, **serve_options: Any) -> EngineProcess:
    base.mkdir()
    return EngineProcess(base, containerd=session.containerd.address, namespace=namespace, **serve_options)


def finish(made: EngineProcess) -> None:
    """Take an engine down in which a test may have left plugins, and whose child may have ended."""
    if made.child is not None and made.child.poll() is not None:
        made.child = None
    settled = made.root / "engine.json"
    if made.child is None and settled.exists() and json.loads(settled.read_text())["is_claimed"]:
        made.start()
    if made.child is not None:
        for plugin in made.plugins():
            made.remove(plugin["Name"], force=True)
    made.close()


def ctr(session: Session, namespace: str, *words: str) -> str:
    command = ["ctr", "-a", session.containerd.address, "-n", namespace, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def moorage(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, with nothing of our environment that names an engine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MOORAGE_")}
    return subprocess.run(
        [sys.executable, "-m", "moorage", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit(120),
        env={**clean, **environment},
    )


def kill(made: EngineProcess) -> None:
    assert made.end(signal.SIGKILL) == -signal.SIGKILL


def refusal(made: EngineProcess) -> str:
    """Why an engine refuses to start."""
    begin = made.log.stat().st_size if made.log.exists() else 0
    assert made._popen("serve").wait(limit(60)) != 0
    return made.log.read_text()[begin:]


def create_foreign(session: Session, namespace: str, id: str, *labels: str) -> None:
    words = [word for label in labels for word in ("--label", label)]
    ctr(session, namespace, "containers", "create", "--rootfs", *words, str(session.rootfs), id, "/actor")


# two engines on one namespace


@pytest.mark.parametrize("is_dead", [True, False])
def test_case_229_an_engine_refuses_the_namespace_of_another_and_touches_nothing(
    first: EngineProcess, session: Session, tmp_path: Path, namespace: str, is_dead: bool
) -> None:
    first.create("p")
    first.enable("p")
    first.create("off")
    pid = first.more("p")["Pid"]
    before = ctr(session, namespace, "images", "ls", "-q"), ctr(session, namespace, "containers", "ls", "-q")
    if is_dead:
        kill(first)
    second = engine_on(session, tmp_path / "second", namespace)
    said = refusal(second)
    assert f"cannot use namespace {namespace}: it belongs to engine " in said
    assert f" on {first.root}, whether that runs or not" in said
    assert "give another one with --namespace, or use --containerd private" in said
    assert "removing" not in said
    assert (
        ctr(session, namespace, "images", "ls", "-q"),
        ctr(session, namespace, "containers", "ls", "-q"),
    ) == before
    # down of the second one touches nothing either, and says that it has nothing to do
    done = moorage("down", "--root", str(second.root), "--exec-root", str(second.exec_root))
    assert (done.returncode, "nothing to stop" in done.stdout) == (0, True), done.stderr
    # a way out that it names works on the directory that was refused
    second.namespace = f"{namespace}-other"
    second.start()
    second.create("q")
    second.enable("q")
    finish(second)
    if is_dead:
        first.start()
    assert first.until("p", "ready")["Pid"] == pid
    first.disable("p")
    first.enable("p")
    first.enable("off")


def test_case_229_without_the_lease_what_an_engine_made_says_whose_the_namespace_is(
    first: EngineProcess, session: Session, tmp_path: Path, namespace: str
) -> None:
    first.create("p")
    kill(first)
    ctr(session, namespace, "leases", "rm", "moorage.owner")
    second = engine_on(session, tmp_path / "second", namespace)
    engine_id = json.loads((first.root / "engine.json").read_text())["engine_id"]
    assert f"cannot use namespace {namespace}: it belongs to engine {engine_id}" in refusal(second)
    first.start()
    first.enable("p")
    finish(second)


def test_case_229_what_bears_another_engines_identity_is_never_removed(
    first: EngineProcess, session: Session, namespace: str
) -> None:
    foreign, plugin = "moorage.engine=" + "f" * 32, "moorage.plugin=" + "d" * 64
    create_foreign(session, namespace, "d" * 64 + ".1", foreign, plugin, "moorage.run=1")
    create_foreign(
        session, namespace, "e" * 64 + ".1", "moorage.plugin=" + "e" * 64, "moorage.run=1"
    )  # an earlier version's
    first.create("p")
    ctr(session, namespace, "images", "tag", "docker.io/library/p:latest", "docker.io/library/theirs:latest")
    ctr(session, namespace, "images", "label", "docker.io/library/theirs:latest", foreign, plugin)
    ctr(session, namespace, "leases", "create", "--id", "moorage-theirs", foreign)
    ctr(session, namespace, "leases", "create", "--id", "moorage-earlier")
    kill(first)
    first.start()
    first.request_json("POST", "/moorage/v1/prune")
    containers, leases = (
        ctr(session, namespace, "containers", "ls", "-q"),
        ctr(session, namespace, "leases", "ls", "-q"),
    )
    assert containers.split() == ["d" * 64 + ".1", "e" * 64 + ".1"]
    assert {"moorage-theirs", "moorage-earlier"} <= set(leases.split())
    assert "docker.io/library/theirs:latest" in ctr(session, namespace, "images", "ls", "-q")
    # one with the name of a new plugin of this engine is left alone, too, and the plugin works
    first.create("theirs")
    first.enable("theirs")
    first.remove("theirs", force=True)
    assert "docker.io/library/theirs:latest" in ctr(session, namespace, "images", "ls", "-q")
    notices = "\n".join(first.info()["Moorage"]["Notices"])
    for id in ("d" * 64, "e" * 64, "theirs:latest", "moorage-theirs", "moorage-earlier"):
        assert id in notices
    ctr(session, namespace, "containers", "rm", "d" * 64 + ".1", "e" * 64 + ".1")
    ctr(session, namespace, "images", "rm", "docker.io/library/theirs:latest")
    for lease in ("moorage-theirs", "moorage-earlier"):
        ctr(session, namespace, "leases", "rm", lease)


def test_case_229_everything_that_is_created_bears_the_engines_identity(
    first: EngineProcess, session: Session, namespace: str
) -> None:
    first.create("p")
    first.enable("p")
    mark = "moorage.engine=" + json.loads((first.root / "engine.json").read_text())["engine_id"]
    (container,) = ctr(session, namespace, "containers", "ls", "-q").split()
    assert json.loads(ctr(session, namespace, "containers", "info", container))["Labels"]["moorage.engine"] in mark
    for line in ctr(session, namespace, "images", "ls").splitlines()[1:]:
        assert mark in line
    for line in ctr(session, namespace, "content", "ls").splitlines()[1:]:
        assert mark in line
    assert mark in ctr(session, namespace, "leases", "ls")


def test_case_229_plugins_of_an_earlier_version_are_adopted_by_their_records(
    first: EngineProcess, session: Session, namespace: str
) -> None:
    first.create("p")
    first.enable("p")
    pid = first.more("p")["Pid"]
    kill(first)
    (container,) = ctr(session, namespace, "containers", "ls", "-q").split()
    ctr(session, namespace, "containers", "label", container, "moorage.engine=")
    ctr(session, namespace, "images", "label", "docker.io/library/p:latest", "moorage.engine=")
    ctr(session, namespace, "leases", "rm", "moorage.owner")
    ctr(
        session,
        namespace,
        "leases",
        "create",
        "--id",
        "moorage.owner",
        f"moorage.root={first.root}",
        "moorage.boot=x",
    )
    first.start()
    assert first.until("p", "ready")["Pid"] == pid
    assert first.info()["Moorage"]["Notices"] == []
    first.remove("p", force=True)
    assert ctr(session, namespace, "images", "ls", "-q").split() == []
    assert ctr(session, namespace, "containers", "ls", "-q").split() == []


def test_case_229_a_copied_data_directory_is_refused_and_a_moved_one_is_not(
    first: EngineProcess, tmp_path: Path, session: Session, namespace: str
) -> None:
    first.create("p")
    assert first.end() == 0
    copy = engine_on(session, tmp_path / "copy", namespace)
    subprocess.run(["cp", "-a", first.root, copy.root], check=True)
    assert f"{copy.root} is a copy of {first.root}" in refusal(copy)
    subprocess.run(["rm", "-r", copy.root], check=True)
    first.root.rename(first.root.with_name("moved"))
    first.root = first.root.with_name("moved")
    first.start()
    first.enable("p")
    assert not copy.exec_root.exists()


def test_case_229_the_run_time_directory_of_another_engine_is_refused(
    first: EngineProcess, session: Session, tmp_path: Path, namespace: str
) -> None:
    first.create("p")
    first.enable("p")
    second = engine_on(session, tmp_path / "second", f"{namespace}-other")
    second.exec_root = first.exec_root
    assert f"cannot use {first.exec_root} for run-time files: the engine on {first.root} works in it" in refusal(second)
    kill(first)
    assert f"plugins of the engine on {first.root} may run from it" in refusal(second)
    done = moorage("down", "--root", str(second.root), "--exec-root", str(second.exec_root))
    assert done.returncode == 1
    assert f"has the run-time files of the engine on {first.root}" in done.stderr
    first.start()
    assert first.until("p", "ready")


# other programs


def test_case_231_a_container_of_another_program_is_reported_and_the_engine_serves(
    first: EngineProcess, session: Session, namespace: str
) -> None:
    first.create("p")
    first.enable("p")
    pid = first.more("p")["Pid"]
    create_foreign(session, namespace, "web")
    try:
        kill(first)
        first.start()
        assert first.until("p", "ready")["Pid"] == pid
        text = f"container web (of another program) in namespace {namespace} is not this engine's"
        assert first.info()["Moorage"]["Notices"] == [text]
        assert f"leaving container web (of another program) in namespace {namespace} alone" in first.log.read_text()
        done = moorage("--host", f"unix://{first.socket}", "doctor")
        assert f"leftovers: {text}" in done.stdout
        first.request_json("POST", "/moorage/v1/prune")
        first.remove("p", force=True)
        assert ctr(session, namespace, "containers", "ls", "-q").split() == ["web"]
        first.down()
        assert ctr(session, namespace, "containers", "ls", "-q").split() == ["web"]
    finally:
        ctr(session, namespace, "containers", "rm", "web")


def test_case_231_an_image_of_another_program_with_a_plugins_name_is_no_obstacle(
    first: EngineProcess, session: Session, namespace: str
) -> None:
    first.create("a")
    name = "docker.io/library/b:latest"
    ctr(session, namespace, "images", "tag", "docker.io/library/a:latest", name)
    ctr(session, namespace, "images", "label", name, "moorage.engine=", "moorage.plugin=")
    first.create("b")
    first.enable("b")
    kill(first)
    first.start()
    first.until("b", "ready")
    first.remove("b", force=True)
    assert name in ctr(session, namespace, "images", "ls", "-q").split()
    ctr(session, namespace, "images", "rm", name)


# options that were not given


def test_case_230_what_was_chosen_at_the_first_start_counts_where_nothing_is_given(
    first: EngineProcess, session: Session, namespace: str
) -> None:
    first.create("p")
    first.enable("p")
    assert first.end() == 0
    directories = "--root", str(first.root), "--exec-root", str(first.exec_root)
    done = moorage("down", "--root", str(first.root))
    assert (done.returncode, done.stdout) == (0, "stopped 1 plugin\n"), done.stderr
    assert first.left() == []
    assert ctr(session, namespace, "containers", "ls", "-q") == ""
    process = subprocess.Popen([sys.executable, "-m", "moorage", "serve", "--root", str(first.root)])
    try:
        first.wait_until(lambda: first.info()["Moorage"]["Problem"] == "", "the engine has containerd")
        assert first.info()["Moorage"]["Namespace"] == namespace
        assert first.info()["Moorage"]["ExecRoot"] == str(first.exec_root)
        first.until("p", "ready")
        for environment in ({"MOORAGE_ROOT": str(first.root)}, {"MOORAGE_EXEC_ROOT": str(first.exec_root)}):
            assert "p:latest" in moorage("ls", **environment).stdout
            assert f"answers on {first.socket}" in moorage("doctor", **environment).stdout
    finally:
        done = moorage("down", *directories)
        assert (done.returncode, done.stdout) == (0, "stopped 1 plugin and the engine\n"), done.stderr
        assert process.wait(limit(30)) == 0
    done = moorage("down", *directories)
    assert (done.returncode, done.stdout) == (0, f"nothing to stop: no plugin of the engine on {first.root} runs\n")


# down


def test_case_225_down_touches_only_the_engine_of_its_directories(
    first: EngineProcess, session: Session, tmp_path: Path, namespace: str
) -> None:
    first.create("p")
    first.enable("p")
    pid = first.more("p")["Pid"]
    second = engine_on(session, tmp_path / "second", f"{namespace}-other")
    second.start()
    directories = "--root", str(second.root), "--exec-root", str(second.exec_root)
    done = moorage("down", *directories, MOORAGE_HOST=f"unix://{first.socket}")
    assert (done.returncode, done.stdout) == (0, "stopped the engine\n"), done.stderr
    assert second.child is not None
    assert second.child.wait(limit(10)) == 0
    assert second.left() == []
    done = moorage("--host", f"unix://{first.socket}", "down", *directories)
    assert (done.returncode, "nothing to stop" in done.stdout) == (0, True)
    assert first.more("p")["Pid"] == pid
    unknown = moorage("down", "--root", str(tmp_path / "nothing"), "--exec-root", str(first.exec_root))
    assert (unknown.returncode, unknown.stdout) == (
        0,
        f"nothing to stop: no engine has worked on {tmp_path / 'nothing'}\n",
    )
    assert first.more("p")["Pid"] == pid


@pytest.mark.parametrize("is_dead", [False, True])
def test_case_225_the_host_alone_finds_the_engine(first: EngineProcess, is_dead: bool) -> None:
    first.create("p")
    first.enable("p")
    host = f"unix://{first.socket}"
    if is_dead:
        kill(first)
    assert str(first.root if is_dead else first.socket) in moorage("doctor", MOORAGE_HOST=host).stdout
    done = moorage("down", MOORAGE_HOST=host)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("stopped 1 plugin\n" if is_dead else "stopped 1 plugin and the engine\n")
    assert first.left() == []
    if first.child is not None:
        assert first.child.wait(limit(10)) == 0
    done = moorage("down", MOORAGE_HOST=host)
    assert done.returncode == 1
    assert f"cannot determine which engine {host} is" in done.stderr


@pytest.mark.parametrize("is_dead", [False, True])
def test_case_225_down_in_another_mount_namespace_is_refused(first: EngineProcess, is_dead: bool) -> None:
    first.create("p")
    first.enable("p")
    pid = first.more("p")["Pid"]
    if is_dead:
        kill(first)
    command = [sys.executable, "-m", "moorage", "down", "--root", str(first.root)]
    done = subprocess.run(["unshare", "--mount", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        f"cannot work on {first.root} from here: its engine mounted file systems in another mount namespace"
        in done.stderr
    )
    assert "nsenter --mount=/proc/" in done.stderr
    if is_dead:
        first.start()
    assert first.until("p", "ready")["Pid"] == pid


# directories


def test_case_232_directories_without_a_record_are_removed_or_renamed(first: EngineProcess) -> None:
    for name in ("gone", "kept"):
        first.create(name)
    removed, lost = first.inspect("gone")["Id"], "a" * 64
    assert first.end() == 0
    plugins = first.root / "plugins"
    (plugins / removed).rename(plugins / f"{removed}-removing")
    (plugins / lost / "propagated-mount").mkdir(parents=True)
    (plugins / lost / "propagated-mount/volume").write_text("precious")
    (plugins / ("b" * 64) / "propagated-mount").mkdir(parents=True)
    newer = first.root / "plugins" / ("c" * 64) / "plugin.json"
    newer.parent.mkdir()
    newer.write_text('{"schema": 99}')
    first.start()
    first.enable("kept")
    first.wait_until(lambda: [each["Name"] for each in first.plugins()] == ["kept:latest"], "the removal is finished")
    assert sorted(each.name for each in plugins.iterdir()) == sorted(["c" * 64, first.inspect("kept")["Id"]])
    assert (first.root / "set-aside" / lost / "propagated-mount/volume").read_text() == "precious"
    shown = moorage("--host", f"unix://{first.socket}", "doctor").stdout
    assert f"leftovers: {first.root}/set-aside/{lost} belonged to no plugin and was moved there" in shown
    assert f"leftovers: cannot read {newer}: it was written by a newer moorage" in shown
    assert newer.exists()


def test_case_225_an_engine_in_another_mount_namespace_does_not_take_plugins_over(first: EngineProcess) -> None:
    first.create("p")
    first.enable("p")
    pid = first.more("p")["Pid"]
    kill(first)
    command = [sys.executable, "-m", "moorage", "serve", "--root", str(first.root)]
    done = subprocess.run(
        ["unshare", "--mount", *command], capture_output=True, text=True, check=False, timeout=limit(60)
    )
    assert done.returncode == 1
    assert f"cannot work on {first.root} from here" in done.stderr
    first.start()
    assert first.until("p", "ready")["Pid"] == pid


# an engine, and an executor of another program


async def open_here(session: Session, namespace: str, root: Path) -> None:
    async with open_executor(session.containerd.address, root, Exits(), namespace=namespace):
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("runs", [True, False])
async def test_i21_an_executor_is_refused_in_the_namespace_of_an_engine(
    first: EngineProcess, session: Session, tmp_path: Path, namespace: str, runs: bool
) -> None:
    first.create("p")
    first.enable("p")
    pid = first.more("p")["Pid"]
    if not runs:
        kill(first)
    with pytest.raises(errors.Conflict, match=f"it belongs to the engine on {first.root}, whether that runs or not"):
        await open_here(session, namespace, tmp_path / "embedded")
    assert "moorage.executor." not in ctr(session, namespace, "leases", "ls", "-q")
    if not runs:
        first.start()
    assert first.until("p", "ready")["Pid"] == pid
    await open_here(session, f"{namespace}-other", tmp_path / "embedded")


@pytest.mark.anyio
async def test_i21_an_engine_is_refused_where_a_program_has_an_executor(
    workspace: Workspace, session: Session, tmp_path: Path
) -> None:
    made = engine_on(session, tmp_path / "engine", workspace.namespace)
    async with executor_process(workspace, workspace.shell("a", FOREVER)) as other:
        said = await anyio.to_thread.run_sync(refusal, made)
        assert f"cannot use namespace {workspace.namespace}: process {other.pid} has an executor in it" in said
        assert "moorage.owner" not in ctr(session, workspace.namespace, "leases", "ls", "-q")
        assert other.process.returncode is None
    async with workspace.executor(Exits()) as executor:
        assert await executor.restore("a", Memory(), Memory())
        await executor.signal("a", signal.SIGKILL)
        await eventually(lambda: not workspace.shims("a"))
    assert ctr(session, workspace.namespace, "leases", "ls", "-q") == ""
