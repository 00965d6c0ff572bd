"""`serve --runtime`: what an engine promises is the same by runc and by crun, and one may follow the other."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.engines import EngineProcess, Refused, config, engine, kill
from support.foreground import wait_until
from support.limits import limit
from support.runtimes import VERSION_1_GROUPS, refuses_hybrid_groups, version_1_groups

pytestmark = pytest.mark.needs("crun", "static-cc")

BOTH = ("runc", "crun")
LIMIT = 32 << 20  # bytes


@pytest.fixture(scope="module")
def view() -> Iterator[list[str]]:
    """The beginning of commands, where both runtimes run."""
    with version_1_groups() as prefix:
        yield prefix


@pytest.fixture(scope="module", params=BOTH)
def house(
    request: pytest.FixtureRequest, view: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineProcess]:
    """An engine whose plugins are run by one of them."""
    with engine(tmp_path_factory.mktemp("engine"), prefix=view, runtime=request.param) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no plugin, no control group and no state of a runtime exists."""
    yield
    if "house" in request.fixturenames:
        house: EngineProcess = request.getfixturevalue("house")
        ids = [plugin["Id"] for plugin in house.plugins()]
        for id in ids:
            house.remove(id, force=True)
        check_nothing_left(house, ids)


def check_nothing_left(house: EngineProcess, ids: list[str]) -> None:
    state = house.exec_root / "runtime-root" / house.namespace
    wait_until(lambda: not list(state.glob("[0-9a-f]*")), "the runtime's state is gone")
    for id in ids:
        assert leftovers.plugin_groups(id) == []
        assert leftovers.processes_in(id) == []


def start(house: EngineProcess, name: str = "p", *arguments: str, **fields: Any) -> Any:
    house.create(name, config(*arguments, **fields))
    house.enable(name)
    return house.more(name)


def shim_of(house: EngineProcess, name: str) -> int:
    id = house.inspect(name)["Id"]
    (shim,) = [
        pid
        for pid in leftovers.shims(house.namespace)
        if any(word.startswith(id.encode()) for word in leftovers.command_line(pid))
    ]
    return shim


def moorage(house: EngineProcess, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [*house.prefix, sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit(120), check=False)


def runtime_of(house: EngineProcess) -> str:
    return str(house.serve_options["runtime"])


# what a run is


def test_the_runtime_of_engine_and_run_is_shown(house: EngineProcess) -> None:
    name = runtime_of(house)
    more = start(house)
    assert more["Runtime"] == name
    about = house.info()
    assert about["Moorage"]["Runtime"] == name
    assert about["Moorage"]["RuntimeVersion"].startswith(f"{name} version ")
    assert about["Moorage"]["RuntimeReason"] == "as requested"
    assert about["Runtimes"][about["DefaultRuntime"]] == {"path": name}
    assert f"runtime     {name} version " in moorage(house, "version").stdout
    said = [line for line in moorage(house, "doctor").stdout.splitlines() if " runtime: " in line]
    assert said == [f"ok       runtime: {about['Moorage']['RuntimeVersion']}; the engine uses it: as requested"]
    house.disable("p")
    assert house.more("p")["Runtime"] == ""


def test_m09_output_exits_and_restarts(house: EngineProcess) -> None:
    start(house, "p", "out=one", "err=two")
    house.wait_until(lambda: {line["text"] for line in house.logs("p")} >= {"one", "two"}, "both streams")
    house.crash("p", 3)
    house.until_restarted("p", 1)
    assert (house.more("p")["LastExit"]["Code"], house.more("p")["LastExit"]["Signal"]) == (3, None)
    kill([house.more("p")["Pid"]])
    house.until_restarted("p", 2)
    assert (house.more("p")["LastExit"]["Code"], house.more("p")["LastExit"]["Signal"]) == (137, "SIGKILL")


def test_e47_an_oom_kill_is_reported(house: EngineProcess) -> None:
    house.create("p", config(f"allocate={4 * LIMIT >> 20}"))
    house.request_own("PUT", "p", "policy", {"memory_bytes": LIMIT, "restarts": "never"})
    with contextlib.suppress(Refused):  # it takes the memory once it listens
        house.enable("p")
    house.wait_until(lambda: (house.more("p")["LastExit"] or {}).get("Signal"), "the exit")
    last = house.more("p")["LastExit"]
    assert (last["OOM"], last["Signal"]) == (True, "SIGKILL")


def test_m12_a_plugin_that_ignores_sigterm_is_killed(house: EngineProcess) -> None:
    pid = start(house, "p", "ignore-term")["Pid"]
    house.request_own("PUT", "p", "policy", {"stop_timeout": 0.2})
    house.disable("p")
    assert not leftovers.is_alive(pid)


def test_a_frozen_plugin_is_stopped(house: EngineProcess) -> None:
    start(house)
    house.request_own("PUT", "p", "policy", {"stop_timeout": 0.2})
    frozen = 0
    for directory in leftovers.plugin_groups(house.inspect("p")["Id"]):
        for name, value in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            if (directory / name).exists() and "unified" not in directory.parts:
                (directory / name).write_text(value)
                frozen += 1
    assert frozen == 1
    house.disable("p")
    assert house.state("p") == "disabled"


def test_limits_of_a_running_plugin_change(house: EngineProcess) -> None:
    house.create("p", config())
    house.request_own("PUT", "p", "policy", {"memory_bytes": 2 * LIMIT, "cpus": 1.0})
    house.enable("p")
    house.request_own("PUT", "p", "policy", {"memory_bytes": LIMIT, "pids": 64, "cpus": 0.5})
    stats = house.request_own("GET", "p", "stats")
    assert (stats["MemoryLimitBytes"], stats["PidsLimit"], stats["CpusLimit"]) == (LIMIT, 64, 0.5)


def test_exec_has_the_streams_and_the_status_of_the_command(house: EngineProcess) -> None:
    start(house)
    done = moorage(house, "exec", "p", "/actor", "out=x", "err=y", "end=7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "x\n", "y\n")
    missing = moorage(house, "exec", "p", "/no/such")
    assert missing.returncode != 0
    assert "cannot run /no/such in plugin p" in missing.stderr
    assert "no such file" in missing.stderr.lower() or "not found" in missing.stderr
    assert house.state("p") == "ready"


def test_a_user_namespace_and_a_read_only_root(house: EngineProcess) -> None:
    house.create("p", config())
    house.request_own("PUT", "p", "policy", {"userns": "auto", "read_only": True, "capabilities": "minimal"})
    house.enable("p")
    pid = house.more("p")["Pid"]
    assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert os.stat(f"/proc/{pid}").st_uid != 0
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status


FAILURES = {
    "missing": (["/no/such"], "there is no /no/such in the plugin's root file system"),
    "a directory": (["/bin"], "/bin is a directory, not a program"),
    "not executable": (["/text"], "/text is not executable; make it so with chmod +x"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_m04_the_reason_of_a_failed_start_is_the_same(house: EngineProcess, name: str) -> None:
    entrypoint, reason = FAILURES[name]
    house.create("p", {**config(), "entrypoint": entrypoint}, **{"text": b"no program", "bin/text": b"no program"})
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            house.enable("p")
        assert reason in caught.value.message
    assert house.state("p") == "disabled"


# what is killed


def test_e21_a_run_outlives_the_engine_and_says_its_runtime(house: EngineProcess) -> None:
    pid = start(house, "p", "count=100")["Pid"]
    house.end(signal.SIGKILL)
    house.start()
    more = house.until("p", "ready")
    assert (more["Pid"], more["Restarts"], more["Runtime"]) == (pid, 0, runtime_of(house))


def test_e49_a_lost_shim_is_no_end_of_the_plugin(house: EngineProcess) -> None:
    start(house)
    kill([shim_of(house, "p")])
    house.until_restarted("p", 1)
    assert house.more("p")["LastExit"]["Code"] is None


def test_e04_state_of_the_runtime_that_nothing_knows_is_no_obstacle(house: EngineProcess) -> None:
    house.create("p", config())
    # of the next run, as a runtime leaves it that is killed at its very beginning
    (house.exec_root / "runtime-root" / house.namespace / f"{house.inspect('p')['Id']}.1").mkdir(parents=True)
    house.enable("p")
    assert house.state("p") == "ready"


# both one after another


def test_runs_keep_their_runtime_while_the_engine_has_another(view: list[str], tmp_path: Path) -> None:
    with engine(tmp_path, prefix=view, runtime="runc") as own:
        for name in ("stays", "crashes", "shim", "stopped"):
            start(own, f"runc-{name}")
        switch(own, "crun")
        for name in ("stays", "crashes", "shim", "stopped"):
            assert own.until(f"runc-{name}", "ready")["Restarts"] == 0
            start(own, f"crun-{name}")
        assert runtimes(own) == {f"{by}-{name}": by for by in BOTH for name in ("stays", "crashes", "shim", "stopped")}
        check_each_way_to_end(own, "runc", "crun")
        switch(own, "runc")
        check_each_way_to_end(own, "crun", "runc")
        assert runtimes(own)["crun-stays"] == "crun"
        assert runtimes(own)["runc-stays"] == "runc"
        ids = [plugin["Id"] for plugin in own.plugins()]
        for plugin in own.plugins():
            own.remove(plugin["Name"], force=True)
        check_nothing_left(own, ids)


def switch(own: EngineProcess, runtime: str) -> None:
    own.end(signal.SIGKILL)
    own.serve_options["runtime"] = runtime
    own.start()


def runtimes(own: EngineProcess) -> dict[str, str]:
    return {plugin["Name"].removesuffix(":latest"): plugin["Moorage"]["Runtime"] for plugin in own.plugins()}


def check_each_way_to_end(own: EngineProcess, old: str, new: str) -> None:
    """Runs of one runtime end under an engine that has the other, and are started again by that."""
    own.crash(f"{old}-crashes", 3)
    kill([shim_of(own, f"{old}-shim")])
    own.disable(f"{old}-stopped")
    own.until_restarted(f"{old}-crashes", 1)
    own.until_restarted(f"{old}-shim", 1)
    own.enable(f"{old}-stopped")
    for name in ("crashes", "shim", "stopped"):
        assert runtimes(own)[f"{old}-{name}"] == new
    assert runtimes(own)[f"{old}-stays"] == old
    stale = own.exec_root / "runtime-root" / own.namespace
    ids = {plugin["Id"]: plugin for plugin in own.plugins()}
    wait_until(lambda: len(list(stale.glob("[0-9a-f]*"))) == len(ids), "the state of each run, and of no other")


def test_both_run_in_one_shim(view: list[str], tmp_path: Path) -> None:
    with engine(tmp_path, prefix=view, runtime="runc", shim="shared") as own:
        start(own, "a")
        switch(own, "crun")
        own.until("a", "ready")
        start(own, "b")
        assert runtimes(own) == {"a": "runc", "b": "crun"}
        own.crash("a", 3)
        own.until_restarted("a", 1)
        assert runtimes(own) == {"a": "crun", "b": "crun"}
        assert own.more("b")["Restarts"] == 0


# the choice


def test_auto_is_crun_where_a_trial_shows_that_it_works(tmp_path: Path) -> None:
    """By the default runtime under that name, since which version of crun passes depends on the machine."""
    crun = tmp_path / "crun"
    crun.write_text('#!/bin/sh\n[ "$3" != --version ] || { echo crun version 99.0; exit; }\nexec runc "$@"\n')
    crun.chmod(0o755)
    path = ["env", f"PATH={tmp_path}:{os.environ['PATH']}"]
    with engine(tmp_path, prefix=path, runtime="auto") as own:
        about = own.info()["Moorage"]
        assert (about["Runtime"], about["RuntimeReason"]) == ("crun", "crun is installed and runs plugins here")
        assert about["RuntimeVersion"] == "crun version 99.0"
        assert start(own)["Runtime"] == "crun"
        assert not (own.exec_root / "t").exists()
        record = own.exec_root / "trial.json"
        tried_at = record.stat().st_mtime_ns
        own.end()
        own.start()
        assert (own.info()["Moorage"]["Runtime"], record.stat().st_mtime_ns) == ("crun", tried_at), "tried again"
        own.end()
        crun.write_text('#!/bin/sh\n[ "$3" != --version ] || { echo crun version 99.1; exit; }\nexit 1\n')
        own.start()
        assert own.info()["Moorage"]["Runtime"] == "runc"
        assert record.stat().st_mtime_ns != tried_at
        assert own.until("p", "ready")["Runtime"] == "crun"
        crun.write_text('#!/bin/sh\nexec runc "$@"\n')  # its shim uses it


def test_auto_is_as_the_trial_says(view: list[str], tmp_path: Path) -> None:
    with engine(tmp_path, prefix=view, runtime="auto") as own:
        about = own.info()["Moorage"]
        if about["Runtime"] == "runc":
            assert re.match(
                r"crun version \S+ cannot run plugins here: (it cannot run a plugin|crun before 1\.9)",
                about["RuntimeReason"],
            )
        assert start(own)["Runtime"] == about["Runtime"]
        assert not (own.exec_root / "t").exists()


@pytest.mark.skipif(not refuses_hybrid_groups(), reason="crun runs here")
def test_auto_is_runc_where_crun_runs_nothing(tmp_path: Path) -> None:
    with engine(tmp_path, runtime="auto") as own:
        about = own.info()["Moorage"]
        assert about["Runtime"] == "runc"
        assert "cannot run plugins here: it cannot run a plugin: create exits with 1" in about["RuntimeReason"]
        assert "cgroups in hybrid mode not supported" in about["RuntimeReason"]
        assert start(own)["Runtime"] == "runc"


def test_a_path_is_used_as_it_is_and_one_that_is_missing_is_the_problem(tmp_path: Path) -> None:
    link = tmp_path / "my-runc"
    own = EngineProcess(tmp_path, runtime=str(link))
    try:
        own.start(wait=False)
        own.wait_until(lambda: str(link) in own.info()["Moorage"]["Problem"], "the problem is reported")
        assert own.info()["Moorage"]["Problem"] == f"cannot use runtime {link}: No such file or directory"
        wrapper = '#!/bin/sh\nexec runc "$@"\n'
        link.write_text(wrapper)
        link.chmod(0o755)
        own.wait_until(lambda: own.info()["Moorage"]["Problem"] == "", "the engine uses it once it exists")
        assert start(own)["Runtime"] == str(link)
        own.crash("p", 3)
        own.until_restarted("p", 1)
        own.disable("p")
    finally:
        own.close()


def test_the_view_of_version_1_groups_is_refused_in_the_namespace_of_its_caller() -> None:
    script = f"{VERSION_1_GROUPS} true; echo $?; {VERSION_1_GROUPS} true; findmnt --noheadings /mnt"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(20))
    assert done.stdout == "2\n"
    assert "no mount namespace of its own" in done.stderr
