"""The engine killed in the middle of what it does, and what others leave in its way: the next start puts it right."""

import http.client
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from moorage.containerd.supervisor import PrivateContainerd
from support import leftovers
from support.engines import EngineProcess, Refused, config, engine, kill
from support.foreground import wait_until
from support.limits import limit
from support.unresponsive_fuse import mount_dead_file_system

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.needs("static-cc")]

FULL = os.environ.get("MOORAGE_FAULTS") == "full"
KILLS = 40 if FULL else 1
"""Kills of each operation, at moments spread over the time that it takes."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path, timeouts={"ready": limit(30)}) as made:
        yield made


def legal(house: EngineProcess) -> None:
    """Nothing lies about that belongs to no plugin, and every plugin is in its desired state."""

    def settled() -> bool:
        return all(each["Moorage"]["State"] == ("ready" if each["Enabled"] else "disabled") for each in house.plugins())

    house.wait_until(settled, "wish and state agree", limit(60))
    plugins = house.plugins()
    ids = {plugin["Id"] for plugin in plugins}
    running = {plugin["Id"][:12] for plugin in plugins if plugin["Enabled"]}
    house.wait_until(lambda: {path.name for path in (house.root / "plugins").iterdir()} == ids, "no stray directory")
    house.wait_until(lambda: {path.name for path in (house.exec_root / "p").glob("*")} == running, "no stray mount")
    house.wait_until(lambda: list((house.root / "tmp").iterdir()) == [], "no temporary file")
    mark = f"{house.exec_root}/".encode()
    house.wait_until(
        lambda: (
            sum(mark in b" ".join(leftovers.command_line(pid)) for pid in leftovers.shims("plugins.moby"))
            == len(running)
        ),
        "a shim for each that runs",
    )
    if not plugins:
        blobs = house.root / "containerd/io.containerd.content.v1.content"
        house.wait_until(lambda: not [path for path in blobs.rglob("*/data") if path.is_file()], "no upload is left")
        house.wait_until(
            lambda: not [path for path in (blobs / "blobs").rglob("*") if path.is_file()], "no blob is left"
        )
        snapshots = house.root / "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
        house.wait_until(lambda: not list(snapshots.iterdir()), "no snapshot is left")


def in_background(do: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        with suppress(OSError, http.client.HTTPException, Refused, json.JSONDecodeError):
            do()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


OPERATIONS: dict[str, tuple[str, Callable[[EngineProcess], None], float]] = {
    "create": ("absent", lambda house: house.create("p", None, big=os.urandom(2_000_000)), 0.5),
    "enable": ("disabled", lambda house: house.enable("p"), 0.15),
    "disable": ("enabled", lambda house: house.disable("p"), 0.1),
    "set": ("disabled", lambda house: house.set("p", "A=1"), 0.02),
    "remove": ("enabled", lambda house: house.remove("p", force=True), 0.2),
    "crash": ("enabled", lambda house: house.crash("p", 3), 0.15),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_m10_case_107_killed_at_any_moment_of_an_operation(house: EngineProcess, operation: str) -> None:
    before, do, seconds = OPERATIONS[operation]
    draw = random.Random(operation).random
    for _ in range(KILLS):
        for plugin in house.plugins():
            house.remove(plugin["Name"], force=True)
        if before != "absent":
            house.create("p", config(env=[{"name": "A", "settable": ["value"]}]))
        if before == "enabled":
            house.enable("p")
        thread = in_background(lambda: do(house))
        time.sleep(draw() * seconds)  # the moment of the kill is what is tried here
        house.end(signal.SIGKILL)
        thread.join()
        house.start()
        legal(house)
        if operation in ("create", "remove") and house.plugins():
            house.enable("p") if not house.plugins()[0]["Enabled"] else None
    for plugin in house.plugins():
        house.remove(plugin["Name"], force=True)
    legal(house)


def ctr(house: EngineProcess, *words: str) -> str:
    address = str(house.exec_root / "containerd/c.sock")
    done = subprocess.run(["ctr", "-a", address, "-n", "plugins.moby", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sampled(2)
@pytest.mark.parametrize("what", ["record", "running", "stopped", "directory", "labelled"])
def test_m16_case_016_what_stands_under_the_plugins_id_is_cleared(
    house: EngineProcess, tmp_path: Path, what: str
) -> None:
    house.create("p")
    id = house.inspect("p")["Id"]
    house.enable("p")
    house.disable("p")
    house.end()
    next_run = f"{id}.2" if what != "labelled" else "named-otherwise"
    labels = [f"--label=moorage.plugin={id}", "--label=moorage.run=x"] if what == "labelled" else []
    if what == "directory":
        (house.exec_root / "bundles/plugins.moby" / next_run).mkdir(parents=True)
    else:
        rootfs = tmp_path / "rootfs"
        (rootfs / "usr").mkdir(parents=True)
        for name in ("bin", "lib", "lib64"):
            (rootfs / name).symlink_to(f"usr/{name}")
        process = {"args": ["/bin/sleep", "1000" if what == "running" else "0"], "cwd": "/"}
        (rootfs / "proc").mkdir()
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
        ]
        linux = {"namespaces": [{"type": "mount"}, {"type": "pid"}], "cgroupsPath": f"/moorage/{next_run}"}
        document = {"ociVersion": "1.0.2", "process": process, "root": {"path": str(rootfs)}, "mounts": mounts,
                    "linux": linux}  # fmt: skip
        spec = tmp_path / "spec.json"
        spec.write_text(json.dumps(document))
        ctr(house, "containers", "create", *labels, "--config", str(spec), next_run)
        if what != "record":
            ctr(house, "tasks", "start", "-d", next_run)
    house.start()
    house.enable("p")
    assert house.state("p") == "ready"
    assert "named-otherwise" not in ctr(house, "containers", "ls", "-q")


def test_case_035_restarts_of_containerd_are_no_exits(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    pid = house.more("p")["Pid"]
    for _ in range(10 if FULL else 4):
        kill([int((house.exec_root / "containerd/pid").read_text())])
        time.sleep(0.3)  # it is in the middle of its restart when the next one comes
    house.wait_until(lambda: house.request("GET", "/info")[0] == 200, "the API")
    more = house.more("p")
    assert (more["Pid"], more["Restarts"], more["State"]) == (pid, 0, "ready")
    house.disable("p")


def test_case_021_a_plugin_that_never_listens_delays_no_other_caller(house: EngineProcess) -> None:
    house.create("good")
    house.create("bad", config(env=[{"name": "SOCKET", "value": "plugin.sock", "settable": ["value"]}]))
    house.enable("good")
    house.enable("bad")
    house.end()
    record = house.root / "plugins" / house_id(house, "bad") / "plugin.json"
    document = json.loads(record.read_text())
    document["config"] = document["config"].replace('"/actor"', '"/actor", "never"')
    for name in ("good", "bad"):
        kill(leftovers.processes_in(house_id(house, name)))
    record.write_text(json.dumps(document))
    house.start(wait=False)
    house.until("good", "ready")
    assert [each["Name"] for each in house.plugins()] == ["bad:latest", "good:latest"]
    house.until("bad", "starting")
    assert house.more("bad")["Restarts"] == 1  # since it was killed; a start that failed would be the second
    assert house.inspect("bad")["Enabled"] is True
    house.disable("bad")


def house_id(house: EngineProcess, name: str) -> str:
    for path in (house.root / "plugins").iterdir():
        if json.loads((path / "plugin.json").read_text())["name"] == f"{name}:latest":
            return path.name
    raise AssertionError(name)


def test_m14_case_042_all_plugins_are_stopped_at_once(house: EngineProcess) -> None:
    for number in range(10):
        house.create(f"p{number}", config("ignore-term"))
        house.request_own("PUT", f"p{number}", "policy", {"stop_timeout": limit(4)})
        house.enable(f"p{number}")
    started = time.monotonic()
    house.down()
    assert time.monotonic() - started < limit(39)  # one after another they would take 40 s


def test_case_098_plugins_start_by_themselves_when_containerd_comes_late(tmp_path: Path) -> None:
    late = PrivateContainerd(tmp_path / "root", Path(f"/run/mt-late-{os.getpid()}"))
    with suppress(FileNotFoundError):
        os.remove(late.address)
    house = EngineProcess(tmp_path, containerd=late.address)
    try:
        anyio.run(late.ensure)
        house.start()
        house.create("p")
        house.enable("p")
        house.end()
        anyio.run(late.stop)
        house.start(wait=False)
        house.wait_until(lambda: house.info()["Moorage"]["Problem"] != "", "the engine says what it waits for")
        with pytest.raises(Refused, match="503"):
            house.create("q")
        anyio.run(late.ensure)
        house.until("p", "ready")
        house.close()
    finally:
        anyio.run(late.stop)
        subprocess.run(["rm", "-r", late.state], check=True)


def test_case_023_a_dead_fuse_mount_is_dropped_before_the_restart(house: EngineProcess) -> None:
    house.create("p", config(propagatedMount="/data"))
    house.enable("p")
    point = house.root / "plugins" / house.inspect("p")["Id"] / "propagated-mount/volume"
    point.mkdir()
    mount_dead_file_system(point)
    with pytest.raises(OSError, match="not connected"):
        os.stat(point)
    kill([house.more("p")["Pid"]])
    house.wait_until(lambda: house.more("p")["Restarts"] == 1, "the restart")
    house.until("p", "ready")
    assert os.stat(point).st_nlink == 2
    _, raw = house.request("GET", f"/events?since=1&until={time.time():.6f}")
    wait_until(lambda: b'"unmount"' in raw, "an event that tells of it")
