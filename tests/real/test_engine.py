"""Plugins over time on a real containerd: enable, crash, disable, set, remove, and an engine that comes and goes."""

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from moorage import errors
from moorage.client import MoorageClient
from moorage.doctor.check import CheckTarget, run_checks
from moorage.doctor.engine import ENGINE_CHECKS
from moorage.doctor.findings import Verdict
from support import leftovers
from support.engines import WITHIN, EngineProcess, Refused, UnixConnection, config, engine, kill
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine for tests that neither end it nor fill it."""
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def house(shared: EngineProcess) -> Iterator[EngineProcess]:
    """The shared engine, with no plugin before the test and none after it."""
    yield shared
    for plugin in shared.plugins():
        shared.remove(plugin["Name"], force=True)
    assert leftovers_of_runs(shared) == []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine of the test's own."""
    with engine(tmp_path) as made:
        yield made


def leftovers_of_runs(house: EngineProcess) -> list[str]:
    """What runs have left: processes in their control groups, mounts, directories, records."""
    shims = [pid for pid in leftovers.shims("plugins.moby") if str(house.exec_root).encode() in b" ".join(words(pid))]
    return [
        *(f"shim {pid}" for pid in shims),
        *(f"mount {point}" for point in leftovers.mounts_below(house.exec_root / "p", house.root / "plugins")),
        *(f"file {path}" for path in (house.exec_root / "p").glob("*")),
        *(f"file {path}" for path in (house.exec_root / "bundles").glob("*/*")),
        *(f"file {path}" for path in (house.exec_root / "runtime-root").glob("*/*")),
    ]


def words(pid: int) -> list[bytes]:
    return leftovers.command_line(pid)


def refusal(house: EngineProcess, *arguments: str, within: int = int(WITHIN), **fields: Any) -> Refused:
    """Make a plugin like this and enable it, which has to be refused."""
    house.create("p", config(*arguments, **fields))
    with pytest.raises(Refused) as caught:
        house.enable("p", within)
    return caught.value


# ---- enable


def test_m03_ready_means_that_the_socket_accepts(house: EngineProcess) -> None:
    house.create("p", config("listen=300"))
    started = time.monotonic()
    house.enable("p")
    assert time.monotonic() - started > 0.3
    plugin = house.inspect("p")
    assert plugin["Enabled"] is True
    assert plugin["Moorage"]["State"] == "ready"
    assert leftovers.is_alive(plugin["Moorage"]["Pid"])
    assert json.loads(house.call("p", "Plugin.Activate")) == {"Implements": ["VolumeDriver"]}


def test_m03_the_timeout_is_the_budget(house: EngineProcess) -> None:
    seconds = int(limit(1))  # in which its container starts
    refused = refusal(house, "out=waiting", "never", within=seconds)
    assert refused.status == 500
    assert f"within {seconds} s" in refused.message
    assert "plugin.sock" in refused.message
    assert "waiting" in refused.message
    assert leftovers_of_runs(house) == []
    assert house.inspect("p")["Enabled"] is False
    assert house.state("p") == "disabled"


def test_m04_case_001_an_exit_before_ready_reports_how_and_the_last_lines(house: EngineProcess) -> None:
    refused = refusal(house, "err=boom", "end=3")
    assert refused.status == 500
    assert "exited with status 3" in refused.message
    assert "boom" in refused.message
    assert leftovers_of_runs(house) == []
    assert house.inspect("p")["Enabled"] is False
    last = house.more("p")["LastExit"]
    assert (last["Code"], last["OOM"]) == (3, False)


def test_m04_case_040_a_missing_entrypoint_is_reported_alike_every_time(house: EngineProcess) -> None:
    house.create("p", {**config(), "entrypoint": ["/no/such"]})
    messages = set()
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            house.enable("p")
        messages.add(caught.value.message)
    assert len(messages) == 1
    assert "there is no /no/such in the plugin's root file system" in messages.pop()
    assert leftovers_of_runs(house) == []


def test_case_024_a_mount_source_that_is_not_there_is_named(house: EngineProcess, tmp_path: Path) -> None:
    mount = {"name": "conf", "source": "/nope", "destination": "/conf", "type": "bind", "settable": ["source"]}
    refused = refusal(house, mounts=[mount])
    assert refused.status == 400
    assert "conf" in refused.message
    assert "/nope" in refused.message
    assert "conf.source=" in refused.message
    house.set("p", f"conf.source={tmp_path}")
    house.enable("p")


def test_case_048_null_sources_and_paths_are_named_and_can_be_set(house: EngineProcess) -> None:
    fields: dict[str, Any] = {
        "mounts": [{"name": "m", "destination": "/m", "type": "bind", "settable": ["source"]}],
        "linux": {"devices": [{"name": "d", "settable": ["path"]}]},
    }
    assert "m.source=" in refusal(house, **fields).message
    house.set("p", "m.source=/tmp")
    with pytest.raises(Refused, match=r"d\.path="):
        house.enable("p")
    house.set("p", "d.path=/dev/null")
    house.enable("p")


def test_case_082_the_user_of_the_config_runs_it_and_can_make_its_socket(house: EngineProcess) -> None:
    house.create("p", config(user={"uid": 1000, "gid": 1000}))
    house.enable("p")
    status = Path(f"/proc/{house.more('p')['Pid']}/status").read_text()
    assert "Uid:\t1000\t1000\t1000\t1000" in status


def test_case_073_another_protocol_is_never_spoken_to(house: EngineProcess) -> None:
    interface = {"types": ["x.y/1"], "socket": "plugin.sock", "protocolScheme": "grpc"}
    house.create("p", {**config(), "interface": interface})
    house.enable("p")
    with pytest.raises(Refused, match="speaks grpc, not HTTP"):
        house.request_own("POST", "p", "call?method=x")


def test_case_072_a_socket_in_a_subdirectory(house: EngineProcess) -> None:
    interface = {"types": [], "socket": "csi/csi.sock"}
    env = [{"name": "SOCKET", "value": "csi/csi.sock"}]
    house.create("p", {**config(), "interface": interface, "env": env})
    house.enable("p")


# ---- ends and restarts


def test_m05_a_crash_restarts_it_at_once_and_is_reported(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    first = house.more("p")["Pid"]
    house.crash("p", 7)
    house.wait_until(lambda: house.more("p")["Pid"] not in (first, None), "another process")
    more = house.until("p", "ready")
    assert more["Restarts"] == 1
    assert more["LastExit"]["Code"] == 7
    assert house.inspect("p")["Enabled"] is True


def test_m05_case_005_a_crash_loop_waits_longer_each_time_and_a_disable_ends_it(house: EngineProcess) -> None:
    house.create("p", config("end=1@50"))
    house.enable("p")
    house.wait_until(lambda: house.more("p")["Restarts"] >= 4, "four restarts")
    house.wait_until(lambda: house.state("p") == "restarting" and house.more("p")["NextTryAt"], "a pause")
    started = time.monotonic()
    house.disable("p")
    assert time.monotonic() - started < limit(15)
    count = house.more("p")["Restarts"]
    assert house.state("p") == "disabled"
    time.sleep(1.5)
    assert house.more("p")["Restarts"] == count
    assert leftovers_of_runs(house) == []


def test_m05_policies(house: EngineProcess) -> None:
    for policy, code, state in (("never", 1, "failed"), ("on-failure", 0, "failed"), ("on-failure", 1, "ready")):
        house.create("p")
        house.request_own("PUT", "p", "policy", {"restarts": policy})
        house.enable("p")
        house.crash("p", code)
        house.wait_until(lambda: house.more("p")["LastExit"], "the end is told")
        more = house.until("p", state)
        assert more["LastExit"]["Code"] == code
        assert house.inspect("p")["Enabled"] is True
        house.disable("p")
        house.remove("p")


def test_m05_a_signal_is_reported_as_one(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    os.kill(house.more("p")["Pid"], signal.SIGKILL)
    house.wait_until(lambda: house.more("p")["LastExit"], "the exit")
    last = house.more("p")["LastExit"]
    assert (last["Code"], last["Signal"]) == (137, "SIGKILL")


# ---- disable and remove


def test_m06_case_042_term_then_kill_after_the_stop_timeout(house: EngineProcess) -> None:
    house.create("p", config("ignore-term"))
    house.request_own("PUT", "p", "policy", {"stop_timeout": 0.5})
    house.enable("p")
    pid = house.more("p")["Pid"]
    started = time.monotonic()
    house.disable("p")
    assert 0.5 <= time.monotonic() - started < limit(9)  # the default is 10
    assert not leftovers.is_alive(pid)
    assert leftovers_of_runs(house) == []


def test_m06_docker_texts_of_what_is_disabled_or_enabled_already(house: EngineProcess) -> None:
    house.create("p")
    with pytest.raises(Refused, match="409: plugin is already disabled: plugin p:latest found but disabled"):
        house.disable("p")
    house.enable("p")
    with pytest.raises(Refused, match="409: plugin already enabled: plugin p:latest is enabled"):
        house.enable("p")
    with pytest.raises(Refused, match="409: cannot set on an active plugin"):
        house.set("p", "x=1")
    with pytest.raises(Refused, match="409: plugin p:latest is enabled"):
        house.remove("p")


def test_m17_holders_are_named_and_refused_for(house: EngineProcess) -> None:
    house.create("p")
    with pytest.raises(Refused, match="409"):
        house.request_own("POST", "p", "holders", {"owner": "volume v1"})
    with pytest.raises(Refused, match="404"):
        house.request_own("POST", "q", "holders", {"owner": "volume v1"})
    house.enable("p")
    token = house.request_own("POST", "p", "holders", {"owner": "volume v1"})["Token"]
    with pytest.raises(Refused, match="409: plugin p:latest is in use by volume v1"):
        house.disable("p")
    assert [each["Owner"] for each in house.more("p")["Holders"]] == ["volume v1"]
    house.request_own("DELETE", "p", f"holders/{token}")
    house.disable("p")
    house.enable("p")
    house.request_own("POST", "p", "holders", {"owner": "volume v2"})
    house.disable("p", force=True)


def test_m17_case_106_an_attached_holder_gets_a_release_request_first(house: EngineProcess) -> None:
    def attach() -> tuple[UnixConnection, http.client.HTTPResponse]:
        connection = UnixConnection(house.socket, 30)
        body = json.dumps({"owner": "authorization"})
        path = "/moorage/v1/plugins/p/holders?attached=1"
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert json.loads(answer.readline())["Owner"] == "authorization"
        return connection, answer

    house.create("p")
    house.enable("p")
    for lets_go in (True, False):
        connection, answer = attach()
        states: list[str] = []

        def watch(is_polite: bool = lets_go, answer: Any = answer, connection: Any = connection) -> None:
            assert json.loads(answer.readline()) == {"Event": "stopping"}
            states.append(house.state("p"))  # noqa: B023 - joined below
            if is_polite:
                answer.close()
                connection.close()

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.monotonic()
        house.disable("p", force=True)
        took = time.monotonic() - started
        watcher.join()
        assert states == ["ready"]
        assert took < limit(5) if lets_go else took >= 5  # one that hangs is waited for, but not for ever
        assert house.more("p")["Holders"] == []
        answer.close()
        connection.close()
        house.enable("p")


def test_case_008_a_mount_referenced_by_another_namespace_does_not_block_a_removal(house: EngineProcess) -> None:
    house.create("p", config(propagatedMount="/data"))
    house.enable("p")
    propagated = house.root / "plugins" / house.inspect("p")["Id"] / "propagated-mount"
    (propagated / "volume").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "moorage-test", propagated / "volume"], check=True)
    (propagated / "volume" / "file").write_text("theirs")
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "1000000"]) as holder:
        wait_until(lambda: b"sleep" in leftovers.command_line(holder.pid), "the other namespace")
        house.remove("p", force=True)
        assert not propagated.exists()
        assert leftovers.mounts_below(house.root / "plugins") == []
        assert house.plugins() == []
        holder.kill()
    assert not list((house.root / "plugins").iterdir())


def test_case_019_processes_added_to_a_plugin_end_without_it(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    before = house.more("p")
    container = f"{house.inspect('p')['Id']}.1"
    ctr = ["ctr", "-a", str(house.exec_root / "containerd/c.sock"), "-n", "plugins.moby", "tasks", "exec"]

    def add(number: int) -> int:
        words = [*ctr, "--exec-id", f"e{number}", container, "/actor", "end=7"]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit(60)).returncode

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(add, range(20)))
    assert statuses == [7] * 20
    after = house.more("p")
    assert (after["Pid"], after["Restarts"], after["State"]) == (before["Pid"], 0, "ready")


def test_m07_remove_deletes_content_and_snapshots(house: EngineProcess) -> None:
    before = usage(house)
    house.create("p", None, big=os.urandom(300_000))
    assert usage(house) > before + 250_000
    house.enable("p")
    house.remove("p", force=True)
    wait_until(lambda: usage(house) <= before, "the disk use of before")
    assert not list((house.root / "plugins").iterdir())
    assert not list((house.root / "logs").glob("*"))


def usage(house: EngineProcess) -> int:
    """Bytes of content and of snapshots in containerd's directories."""
    root, total = house.root / "containerd", 0
    for part in ("io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs/snapshots"):
        for path in (root / part).rglob("*"):
            with suppress(FileNotFoundError):  # it is collected while we look
                total += path.lstat().st_size if path.is_file() else 0
    return total


def test_d01_a_forced_collection_while_all_are_disabled_loses_nothing(house: EngineProcess) -> None:
    house.create("a", None, file=b"of a")
    house.create("b", None, file=b"of b")
    house.create("c")
    house.remove("c")  # removing the last user of something collects, and waits for it
    for name in ("a", "b"):
        house.enable(name)


def test_m15_the_engine_says_where_on_the_host_a_path_of_the_plugin_is(house: EngineProcess) -> None:
    house.create("p", config(propagatedMount="/data"), conf=b"of the package")
    client = MoorageClient(f"unix://{house.socket}")
    with pytest.raises(
        errors.Conflict, match="cannot find /conf of plugin p:latest: it is disabled, and its root file"
    ):
        client.host_path("p", "/conf")
    propagated = Path(client.host_path("p", "/data/v1"))
    assert propagated == house.root / "plugins" / house.inspect("p")["Id"] / "propagated-mount/v1"
    house.enable("p")
    assert Path(client.host_path("p", "/conf")).read_bytes() == b"of the package"
    assert Path(client.host_path("p", "/data2")).parent == Path(client.host_path("p", "/conf")).parent
    assert Path(client.host_path("p", "/data/v1")) == propagated
    for inside in ("conf", "", "/a%00"):
        with pytest.raises(Refused, match=r"400: cannot find .* in plugin p:latest: a path inside it begins with /"):
            house.request_own("GET", "p", f"path?path={inside}")


def test_case_076_files_in_the_propagated_mount_stay_and_mounts_go(house: EngineProcess) -> None:
    house.create("p", config(propagatedMount="/data"))
    house.enable("p")
    propagated = house.root / "plugins" / house.inspect("p")["Id"] / "propagated-mount"
    (propagated / "kept").write_text("yes")
    (propagated / "inner").mkdir()
    pid = house.more("p")["Pid"]
    subprocess.run(
        ["nsenter", "-t", str(pid), "-m", "mount", "-t", "tmpfs", "none", str(propagated / "inner")], check=False
    )
    subprocess.run(["mount", "-t", "tmpfs", "none", str(propagated / "inner")], check=True)
    house.disable("p")
    assert not os.path.ismount(propagated / "inner")
    assert (propagated / "kept").read_text() == "yes"
    house.enable("p")
    assert (propagated / "kept").read_text() == "yes"


def test_case_045_mounts_are_the_same_after_many_rounds(house: EngineProcess) -> None:
    house.create("p", config(propagatedMount="/data"))
    before = sorted(leftovers.mounts_below(house.root, house.exec_root))
    for _ in range(5):
        house.enable("p")
        kill([house.more("p")["Pid"]])
        house.wait_until(lambda: house.more("p")["Restarts"] >= 1, "the restart")
        house.until("p", "ready")
        house.disable("p")
    assert sorted(leftovers.mounts_below(house.root, house.exec_root)) == before


# ---- at once


def test_m02_case_020_parallel_creates_and_enables_of_one_name(house: EngineProcess) -> None:
    def attempt(what: str) -> int:
        try:
            house.create("p") if what == "create" else house.enable("p")
        except Refused as refused:
            return refused.status
        return 200

    with ThreadPoolExecutor(20) as pool:
        assert sorted(pool.map(attempt, ["create"] * 20)) == [200, *[409] * 19]
        assert sorted(pool.map(attempt, ["enable"] * 20)) == [200, *[409] * 19]
    assert len(house.plugins()) == 1


def test_m02_case_020_mixed_enables_and_disables_end_as_the_last_answer_says(house: EngineProcess) -> None:
    house.create("p")

    def attempt(what: str) -> int:
        return house.request("POST", f"/plugins/p/{what}?timeout=30")[0]

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(attempt, ["enable", "disable"] * 20)) <= {200, 409}
    enabled = house.inspect("p")["Enabled"]
    house.until("p", "ready" if enabled else "disabled")


def test_m12_case_007_a_wedged_plugin_harms_no_other_caller(house: EngineProcess) -> None:
    house.create("wedged", config("wedge", "ignore-term"))
    house.request_own("PUT", "wedged", "policy", {"stop_timeout": 0.2})
    house.enable("wedged")
    house.create("good")
    with ThreadPoolExecutor(4) as pool:
        stuck = pool.submit(house.request, "POST", f"/moorage/v1/plugins/wedged/call?method=x&timeout={int(limit(6))}")
        house.enable("good")
        house.plugins()
        house.disable("good")
        assert not stuck.done()
        assert stuck.result()[0] == 503
    started = time.monotonic()
    house.disable("wedged")
    assert time.monotonic() - started < limit(9)


def test_case_002_a_disable_cuts_a_slow_start_off(house: EngineProcess) -> None:
    house.create("p", config("never"))
    with ThreadPoolExecutor(1) as pool:
        enabling = pool.submit(house.enable, "p", 60)
        house.until("p", "starting")
        house.disable("p")
        with pytest.raises(Refused, match="a stop was requested"):
            enabling.result()
    assert house.state("p") == "disabled"
    assert leftovers_of_runs(house) == []


# ---- output and settings


def test_case_030_output_is_stored_with_time_and_stream(house: EngineProcess) -> None:
    refusal(house, "out=a", "err=b", "end=1")
    assert {(line["stream"], line["text"]) for line in house.logs("p")} == {("stdout", "a"), ("stderr", "b")}
    assert house.logs("p", "tail=1") == house.logs("p")[-1:]


def test_c04_settings_reach_the_process_and_secrets_are_never_shown(house: EngineProcess) -> None:
    env = [{"name": name, "settable": ["value"]} for name in ("DSN", "FLAG", "EMPTY", "TOKEN")]
    house.create("p", config(env=env))
    house.set("p", "DSN=k=v==", "FLAG", "EMPTY=")
    house.request_own("POST", "p", "set", {"assignments": [], "secrets": ["TOKEN=s3cr3t"]})
    house.enable("p")
    lines = house.call("p", "env").splitlines()
    assert {"DSN=k=v==", "FLAG=", "EMPTY=", "TOKEN=s3cr3t"} <= set(lines)
    assert "s3cr3t" not in json.dumps(house.inspect("p"))
    assert "TOKEN=********" in house.inspect("p")["Settings"]["Env"]
    record = house.root / "plugins" / house.inspect("p")["Id"] / "plugin.json"
    assert record.stat().st_mode & 0o777 == 0o600
    house.disable("p")
    with pytest.raises(Refused, match="400"):
        house.set("p", "=x")


# ---- an engine that comes and goes


def test_m08_m10_running_plugins_keep_their_pids_over_kill_9(own: EngineProcess) -> None:
    for name in ("a", "b", "c"):
        own.create(name)
        own.enable(name)
    own.disable("c")
    pids = {name: own.more(name)["Pid"] for name in ("a", "b")}
    own.end(signal.SIGKILL)
    os.kill(pids["b"], signal.SIGKILL)
    own.start()
    own.until("a", "ready")
    assert own.more("a")["Pid"] == pids["a"]
    more = own.until("b", "ready")
    assert more["Pid"] != pids["b"]
    assert (more["Restarts"], more["LastExit"]["Signal"]) == (1, "SIGKILL")
    assert own.state("c") == "disabled"
    own.crash("a", 5)
    own.wait_until(lambda: own.more("a")["Restarts"] == 1, "a restart that the new engine makes")
    own.until("a", "ready")
    own.disable("a")


def test_m18_sigterm_leaves_plugins_running_and_down_leaves_only_data(own: EngineProcess) -> None:
    own.create("p")
    own.enable("p")
    pid = own.more("p")["Pid"]
    own.create("deaf", config("ignore-term"))
    own.request_own("PUT", "deaf", "policy", {"stop_timeout": 3000})
    own.enable("deaf")
    with ThreadPoolExecutor(1) as threads:
        disabling = threads.submit(own.request, "POST", "/plugins/deaf/disable")
        own.until("deaf", "stopping")
        assert own.end() == 0  # it does not wait for a stop
        with suppress(OSError, http.client.HTTPException):
            disabling.result(limit(30))
    assert leftovers.is_alive(pid)
    own.down()
    assert not leftovers.is_alive(pid)
    assert own.left() == []
    own.start()
    own.until("p", "ready")


def test_m08_without_live_restore_plugins_end_with_the_engine_and_start_anew_after_kill_9(own: EngineProcess) -> None:
    own.create("p")
    own.enable("p")
    first = own.more("p")["Pid"]
    own.end(signal.SIGKILL)
    own.serve_options["live_restore"] = False
    own.start()
    assert own.info()["LiveRestoreEnabled"] is False
    more = own.until("p", "ready")
    assert more["Pid"] != first
    assert not leftovers.is_alive(first)
    assert (more["Restarts"], more["LastExit"]) == (0, None)
    assert own.end() == 0
    assert not leftovers.is_alive(more["Pid"])
    assert own.left() == []
    own.serve_options["live_restore"] = True
    own.start()
    own.until("p", "ready")


def test_case_003_after_a_hard_reset_everything_comes_back(own: EngineProcess) -> None:
    own.create("p")
    own.enable("p")
    id = own.inspect("p")["Id"]
    own.end(signal.SIGKILL)
    containerd = int((own.exec_root / "containerd/pid").read_text())
    everything = [*leftovers.processes_in(id), *processes_naming(own.exec_root), containerd]
    kill(everything)
    wait_until(lambda: not any(map(leftovers.is_alive, everything)), "all dead")
    subprocess.run(["umount", "-l", *leftovers.mounts_below(own.exec_root)], check=False)
    subprocess.run(f"rm -rf {own.exec_root}/*", shell=True, check=True)
    own.start()
    own.until("p", "ready")
    assert own.inspect("p")["Enabled"] is True


def processes_naming(workspace: Path) -> list[int]:
    from support.engines import processes_below

    return processes_below(workspace)


def test_m11_a_second_engine_on_the_same_data_is_refused(own: EngineProcess) -> None:
    second = own._popen("serve")
    assert second.wait(limit(20)) != 0
    assert "works on it" in own.log.read_text()


def test_case_098_the_api_answers_while_containerd_is_unavailable(tmp_path: Path) -> None:
    house = EngineProcess(tmp_path, containerd=str(tmp_path / "none.sock"))
    try:
        house.start(wait=False)
        house.wait_until(lambda: house.plugins() == [], "the list")
        with pytest.raises(Refused, match="503"):
            house.create("p")
        assert house.info()["Moorage"]["Problem"]
    finally:
        house.end()


def test_case_004_a_death_while_containerd_is_unavailable_is_found(own: EngineProcess) -> None:
    own.create("p")
    own.enable("p")
    pid = own.more("p")["Pid"]
    containerd = int((own.exec_root / "containerd/pid").read_text())
    kill([containerd])
    kill([pid])
    own.wait_until(lambda: own.more("p")["Restarts"] == 1, "the restart", limit(15))
    assert own.until("p", "ready")["LastExit"]["Code"] == 137


def test_m19_the_data_of_a_newer_version_are_refused(own: EngineProcess) -> None:
    own.end()
    path = own.root / "engine.json"
    original = path.read_text()
    path.write_text(original.replace('"schema": 1', '"schema": 2').replace('"schema":1', '"schema":2'))
    assert own._popen("serve").wait(limit(20)) != 0
    assert "newer" in own.log.read_text()
    path.write_text(original)
    own.start()


def test_m08_a_bad_record_is_skipped(own: EngineProcess) -> None:
    own.create("good")
    own.create("bad")
    id = own.inspect("bad")["Id"]
    own.end()
    (own.root / "plugins" / id / "plugin.json").write_text("{")
    own.start()
    assert [plugin["Name"] for plugin in own.plugins()] == ["good:latest"]
    assert "plugin.json" in own.log.read_text()
    own.enable("good")


def test_l03_doctor_finds_an_engine_that_works(house: EngineProcess) -> None:
    target = CheckTarget(house.root, house.exec_root, house.socket, MoorageClient(str(house.socket)).info)
    found = {each.subject: each for each in run_checks(ENGINE_CHECKS, target)}
    assert [found[each].verdict for each in ("engine", "engine socket")] == [Verdict.OK, Verdict.OK]
    assert f"answers on {house.socket}, with containerd " in found["engine"].text
    assert found["engine socket"].text == f"root may use {house.socket}"


# ---- events


def test_m13_events_of_a_life(house: EngineProcess) -> None:
    started = time.time()
    house.create("p")
    house.enable("p")
    house.crash("p", 7)
    house.wait_until(lambda: house.more("p")["Restarts"] == 1, "the restart")
    house.until("p", "ready")
    house.disable("p")
    house.remove("p")
    _, raw = house.request("GET", f"/events?since={started:.6f}&until={time.time():.6f}")
    events = [json.loads(line) for line in raw.splitlines()]
    assert [each["Action"] for each in events] == [
        "create", "enable", "ready", "die", "restart", "ready", "disable", "remove",
    ]  # fmt: skip
    die = events[3]["Actor"]["Attributes"]
    assert (die["name"], die["code"], die["oom"]) == ("p:latest", "7", "false")
