"""containerd's databases, damaged while nothing ran or under a running engine: named everywhere, and a way out."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from moorage.containerd.database import DamagedDatabase, check_database, check_databases
from support.corruption import METADATA, SNAPSHOTS
from support.engines import EngineProcess, Refused, config, engine, package
from support.foreground import wait_until
from support.limits import limit
from support.packages import layer, make, push
from support.registries import serve_registry

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "docker-registry")]

TAR = {"Content-Type": "application/x-tar"}
SETTABLE = {"env": [{"name": "LEVEL", "value": "0", "settable": ["value"]}]}


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _zero_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(2 * 4096))


def _put_garbage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(random.Random(1).randbytes(path.stat().st_size - 2 * 4096))


def _empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate,
    "header zeroed": _zero_header,
    "garbage": _put_garbage,
    "emptied": _empty,
    "deleted": Path.unlink,
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine with a plugin that runs, p, which has settings and propagated data."""
    with engine(tmp_path_factory.mktemp("engine")) as made:
        made.create("p", config(propagatedMount="/data", **SETTABLE))
        made.set("p", "LEVEL=7")
        made.enable("p")
        (made.root / "plugins" / made.inspect("p")["Id"] / "propagated-mount" / "kept").write_text("mine")
        yield made


def doctor(house: EngineProcess) -> dict[str, dict[str, Any]]:
    environment = {"MOORAGE_ROOT": str(house.root), "MOORAGE_EXEC_ROOT": str(house.exec_root)}
    done = subprocess.run(
        [sys.executable, "-m", "moorage", "--json", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    return {line["subject"]: line for line in map(json.loads, done.stdout.splitlines())}


def assert_named(house: EngineProcess, path: Path) -> None:
    """Log, info, doctor and every call name the file and the way out."""
    house.wait_until(lambda: str(path) in house.info()["Moorage"]["Problem"], "the problem is named")
    texts = [house.info()["Moorage"]["Problem"], house.log.read_text()]
    calls: tuple[Callable[[], Any], ...] = (
        lambda: house.request_json("POST", "/plugins/create?name=q", package(config()), headers=TAR),
        lambda: house.request_json("GET", "/moorage/v1/df"),
        lambda: house.request_json("POST", "/moorage/v1/prune"),
        lambda: house.request_json("GET", "/moorage/v1/save?name=p"),
        lambda: house.request_json("POST", "/moorage/v1/load", package(config()), headers=TAR),
    )
    for call in calls:
        with pytest.raises(Refused) as refused:
            call()
        assert refused.value.status == 503
        texts.append(refused.value.message)
    findings = doctor(house)
    assert findings["engine"]["verdict"] == "wrong"
    found = findings["containerd's databases"]
    assert found["verdict"] == "wrong"
    texts += [findings["engine"]["text"], f"{found['text']} {found['advice']}"]
    for text in texts:
        assert f"{path} is damaged" in text
        assert f"run moorage down, rename {house.root / 'containerd'}," in text


@pytest.mark.sampled(3)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [METADATA, SNAPSHOTS], ids=["metadata", "snapshots"])
def test_case_219_a_damaged_database_is_named_and_down_leaves_nothing(
    house: EngineProcess, which: str, damage: str, tmp_path: Path
) -> None:
    if house.child is None:
        house.start()
    house.down()
    path = house.root / which
    shutil.copy(path, tmp_path / "good")
    try:
        DAMAGES[damage](path)
        findings = doctor(house)["containerd's databases"]
        assert str(path) in findings["text"]
        house.start(wait=False)
        assert_named(house, path)
        assert house.inspect("p")["Enabled"], "the record survives"
        house.down()
        assert house.left() == []
    finally:
        shutil.copy(tmp_path / "good", path)
    house.start()
    house.until("p", "ready")


def test_case_219_a_database_that_cannot_be_written_is_named(house: EngineProcess) -> None:
    house.down()
    path = house.root / METADATA
    subprocess.run(["mount", "--bind", "-o", "ro", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
    try:
        house.start(wait=False)
        assert_named(house, path)
        house.down()
        assert house.left() == [f"mount {path}"], "the one of this test"
    finally:
        subprocess.run(["umount", path], check=True)
    house.start()
    house.until("p", "ready")


def containerd_of(house: EngineProcess) -> int:
    return int((house.exec_root / "containerd/pid").read_text())


def processes_of(house: EngineProcess) -> list[int]:
    pid = house.more("p")["Pid"]
    return [pid] if pid else []


def test_case_219_one_that_is_damaged_under_a_running_engine_is_named_and_down_stops_what_runs(
    house: EngineProcess, tmp_path: Path
) -> None:
    if house.child is None:
        house.start()
    house.until("p", "ready")
    (process,) = processes_of(house)
    path = house.root / METADATA
    pid = containerd_of(house)
    os.kill(pid, signal.SIGSTOP)  # so that it writes nothing behind our back
    shutil.copy(path, tmp_path / "good")
    try:
        _zero_header(path)
        os.kill(pid, signal.SIGKILL)
        assert_named(house, path)
        os.kill(process, 0)  # it runs on
        house.down()
        assert house.left() == []
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    finally:
        shutil.copy(tmp_path / "good", path)
    house.start()
    house.until("p", "ready")


def test_case_219_a_broken_containerd_that_serves_is_named_and_stopped_by_down(
    house: EngineProcess, tmp_path: Path
) -> None:
    if house.child is None:
        house.start()
    path, configuration = house.root / METADATA, house.exec_root / "containerd/config.toml"
    text = configuration.read_text()
    house.down()
    shutil.copy(path, tmp_path / "good")
    configuration.parent.mkdir(parents=True, exist_ok=True)
    configuration.write_text(text)
    _zero_header(path)
    child = subprocess.Popen(
        ["containerd", "--config", configuration], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_until((house.exec_root / "containerd/c.sock").exists, "the broken containerd serves")
        house.start(wait=False)
        house.wait_until(lambda: str(path) in house.info()["Moorage"]["Problem"], "the problem is named")
        house.down()
        assert child.wait(limit(20)) is not None
        assert house.left() == []
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
        shutil.copy(tmp_path / "good", path)
    house.start()
    house.until("p", "ready")


def test_case_219_after_the_way_out_create_install_and_load_give_packages_back_to_their_records(
    house: EngineProcess, tmp_path: Path
) -> None:
    if house.child is None:
        house.start()
    with serve_registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/c219/p:1"
        push(registry.host, "c219/p", "1", make(config(**SETTABLE), layer({"more": b"1"})))
        house.install(name)
        house.set(name, "LEVEL=5")
        house.create("loaded", config(description="loaded"))
        archive = house.request("GET", "/moorage/v1/save?name=loaded")[1]
        ids = {each["Name"]: each["Id"] for each in house.plugins()}
        house.down()
        shutil.move(house.root / "containerd", tmp_path / "moved")
        house.start()
        house.wait_until(lambda: "not in containerd any more" in str(house.more("p")), "p says what is wrong")
        with pytest.raises(Refused, match=rf"not in containerd any more .*moorage install {name}, moorage load"):
            house.enable(name)
        with pytest.raises(Refused, match=r"409: cannot read the package .*not in containerd any more.*moorage create"):
            house.request_json("GET", "/moorage/v1/save?name=p")
        house.create("p", config(propagatedMount="/data", **SETTABLE))
        house.install(name)
        house.request_json("POST", "/moorage/v1/load", archive, headers=TAR)
        house.until("p", "ready")
        assert {each["Name"]: each["Id"] for each in house.plugins()} == ids
        assert "LEVEL=7" in house.inspect("p")["Settings"]["Env"]
        assert "LEVEL=5" in house.inspect(name)["Settings"]["Env"]
        assert (house.root / "plugins" / ids["p:latest"] / "propagated-mount" / "kept").read_text() == "mine"
        for each in (name, "loaded"):
            house.enable(each)
            house.remove(each, force=True)
        with pytest.raises(Refused, match="409: plugin p:latest already exists"):
            house.create("p")


def test_case_219_a_missing_content_directory_is_found_by_doctor_and_repaired_by_upgrade(
    house: EngineProcess, tmp_path: Path
) -> None:
    if house.child is None:
        house.start()
    with serve_registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/c219/content:1"
        push(registry.host, "c219/content", "1", make(config(), layer({"more": b"1"})))
        house.install(name)
        house.down()
        shutil.rmtree(house.root / "containerd/io.containerd.content.v1.content")
        assert "is missing" in doctor(house)["containerd's databases"]["text"]
        house.start()
        with pytest.raises(Refused, match=r"409: .*its file is missing.*moorage upgrade"):
            house.request_json("GET", f"/moorage/v1/save?name={name}")
        house.upgrade(name)
        house.enable(name)
        assert house.request("GET", f"/moorage/v1/save?name={name}")[0] == 200
        house.remove(name, force=True)


def test_case_219_without_plugins_no_content_directory_is_missed(tmp_path: Path) -> None:
    with engine(tmp_path) as new:  # containerd from 1.7 on makes the directory with the first content
        shutil.rmtree(new.root / "containerd/io.containerd.content.v1.content", ignore_errors=True)
        assert doctor(new)["containerd's databases"]["verdict"] == "ok"


def test_case_219_a_database_is_whole_while_it_is_written(house: EngineProcess) -> None:
    if house.child is None:
        house.start()
    done = threading.Event()

    def write() -> None:
        for number in range(5):
            house.create(f"w{number}")
            house.remove(f"w{number}")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    checks = 0
    while not done.is_set() and writer.is_alive():
        check_databases(house.root / "containerd")
        checks += 1
    writer.join()
    assert checks


def test_case_219_any_damage_is_found_or_harmless_and_never_an_internal_error(
    house: EngineProcess, tmp_path: Path
) -> None:
    whole = (house.root / METADATA).read_bytes()
    path, dice, found = tmp_path / "meta.db", random.Random(7), 0
    for _ in range(150):
        data = bytearray(whole)
        at = dice.randrange(len(data))
        size = dice.choice((1, 16, 512, 4096))
        data[at : at + size] = dice.randbytes(len(data[at : at + size]))
        path.write_bytes(data[: dice.choice((len(data), len(data), dice.randrange(1, len(data))))])
        try:
            check_database(path)
        except DamagedDatabase:
            found += 1
    assert found > 20


def fill(directory: Path) -> None:
    """Leave no byte of a file system."""
    for size in (1 << 20, 4096, 1):
        with (directory / f"fill-{size}").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)) == size:
                pass


def test_case_219_a_disk_that_is_full_at_the_start_is_named_and_changes_no_choice(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    try:
        with engine(disk) as full:
            full.create("p")
            full.enable("p")
            full.down()
            fill(disk)
            full.start()
            for _ in range(2):
                with pytest.raises(Refused, match=r"^503: .*no space left on device|^503: .*No space left on device"):
                    full.create("q")
            for each in disk.glob("fill-*"):
                each.unlink()
            full.until("p", "ready")
            full.create("q")
            assert full.info()["Driver"] == "overlayfs"
            full.enable("q")
            full.remove("q", force=True)
    finally:
        subprocess.run(["umount", disk], check=True)
