"""Rows S01, S02, S06, S07, S09, S10: what a plugin writes, links, mounts and nests below the host's paths.

Each attack succeeded at 70b8c43.
"""

import io
import json
import os
import shutil
import socket
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.engines import EngineProcess, Refused, config, engine, kill, package
from support.foreground import wait_until
from support.local_user import USER, run_as_user
from support.unresponsive_fuse import hanging_file_system

pytestmark = [pytest.mark.needs("static-cc")]

EFFECTIVE_USER = """
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("%d\\n", (int)geteuid()); return 0; }
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EngineProcess]:
    try:
        with engine(tmp_path) as made:
            yield made
    finally:
        # pytest's own removal is recursive, and some of these trees are deep
        subprocess.run(["rm", "-rf", tmp_path / "data"], check=False)


@pytest.fixture(scope="module")
def id_program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program that prints its effective user."""
    scratch = tmp_path_factory.mktemp("who")
    (scratch / "who.c").write_text(EFFECTIVE_USER)
    subprocess.run(["gcc", "-static", "-s", "-o", scratch / "who", scratch / "who.c"], check=True)
    return (scratch / "who").read_bytes()


def runtime_of(house: EngineProcess, name: str) -> Path:
    return house.exec_root / "p" / str(house.inspect(name)["Id"])[:12]


def propagated_of(house: EngineProcess, name: str) -> Path:
    return house.root / "plugins" / str(house.inspect(name)["Id"]) / "propagated-mount"


def mount_options(point: Path, pid: int | str = "self") -> set[str]:
    """The options of the uppermost mount at a path, as a process sees it."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    found = [line.split(" ")[5] for line in lines if line.split(" ")[4] == str(point)]
    return set(found[-1].split(","))


def with_special_files(document: dict[str, Any], id_program: bytes) -> bytes:
    """A package with a set-uid program and a device in its root."""
    made = io.BytesIO(package(document))
    with tarfile.open(fileobj=made, mode="a") as archive:
        program = tarfile.TarInfo("rootfs/who")
        program.size, program.mode = len(id_program), 0o4755
        archive.addfile(program, io.BytesIO(id_program))
        device = tarfile.TarInfo("rootfs/zero")
        device.type, device.mode, device.devmajor, device.devminor = tarfile.CHRTYPE, 0o666, 1, 5
        archive.addfile(device)
    return made.getvalue()


@pytest.fixture
def special(house: EngineProcess, id_program: bytes) -> Iterator[str]:
    body = with_special_files(config(propagatedMount="/data"), id_program)
    house.request_json("POST", "/plugins/create?name=special", body, headers={"Content-Type": "application/x-tar"})
    house.enable("special")
    yield "special"
    house.remove("special", force=True)


def test_s01_no_local_user_reaches_a_set_uid_program_of_a_plugin(house: EngineProcess, special: str) -> None:
    root = runtime_of(house, special) / "root"
    assert stat.S_IMODE((root / "who").stat().st_mode) == 0o4755
    for reached in (root / "who", root / "zero", Path(f"/proc/{house.more(special)['Pid']}/root/who")):
        done = run_as_user("/bin/sh", "-c", f"exec {reached}")
        assert done.returncode != 0
        assert not done.stdout
        assert "ermission denied" in done.stderr


def test_s01_every_level_above_what_a_plugin_writes_is_for_root_only(house: EngineProcess, special: str) -> None:
    runtime, propagated = runtime_of(house, special), propagated_of(house, special)
    for directory in (runtime.parent, runtime, propagated.parent, propagated.parent.parent):
        found = directory.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, 0), directory


def test_s01_set_uid_and_devices_have_no_effect_in_the_view_of_the_host(house: EngineProcess, special: str) -> None:
    root = runtime_of(house, special) / "root"
    for point in (root, propagated_of(house, special)):
        assert {"nosuid", "nodev"} <= mount_options(point)
    with pytest.raises(PermissionError):
        (root / "zero").read_bytes()
    program = os.open(root / "who", os.O_PATH)
    try:  # given the open file, whose path no other process can reach
        words = [f"/proc/self/fd/{program}"]
        ran = subprocess.run(words, pass_fds=[program], user=USER, group=USER, extra_groups=[], capture_output=True)
    finally:
        os.close(program)
    assert ran.stdout == f"{USER}\n".encode()
    mounted = [Path(point) for point in leftovers.mounts_below(house.exec_root / "p", house.root / "plugins")]
    assert all({"nosuid", "nodev"} <= mount_options(point) for point in mounted), "a view of its creation is left"


def test_s01_inside_the_plugin_they_work_as_before(house: EngineProcess, special: str) -> None:
    pid = house.more(special)["Pid"]
    for point in (Path("/"), Path("/data")):
        assert not {"nosuid", "nodev"} & mount_options(point, pid)
    (propagated_of(house, special) / "file").write_text("from the host")
    assert Path(f"/proc/{pid}/root/data/file").read_text() == "from the host"


def test_s01_what_an_older_engine_left_open_is_closed_when_it_is_adopted(own: EngineProcess) -> None:
    own.create("p", config(propagatedMount="/data"))
    own.enable("p")
    runtime, pid = runtime_of(own, "p"), own.more("p")["Pid"]
    own.end(9)
    for directory in (runtime, runtime.parent):
        directory.chmod(0o755)
    for point in (runtime / "root", propagated_of_id(own, runtime)):
        subprocess.run(["mount", "-o", "remount,bind,suid,dev", point], check=True)
    own.start()
    own.until("p", "ready")
    assert own.more("p")["Pid"] == pid
    assert [stat.S_IMODE(each.stat().st_mode) for each in (runtime, runtime.parent)] == [0o700, 0o700]
    for point in (runtime / "root", propagated_of(own, "p")):
        assert {"nosuid", "nodev"} <= mount_options(point)


def propagated_of_id(house: EngineProcess, runtime: Path) -> Path:
    (found,) = (house.root / "plugins").glob(f"{runtime.name}*")
    return found / "propagated-mount"


# the directory of the socket


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """A directory of another user."""
    made = tmp_path / "victim"
    made.mkdir(mode=0o755)
    yield made
    while leftovers.mounts_below(made):
        subprocess.run(["umount", made], check=True)


@pytest.mark.parametrize("swap", ["directory", "whole"])
def test_s02_a_link_instead_of_its_socket_directory_gives_it_nothing(
    house: EngineProcess, victim: Path, swap: str
) -> None:
    house.create(
        "p", config(interface={"types": ["x.y/1"], "socket": "a/plugin.sock"}, user={"uid": USER, "gid": USER})
    )
    with pytest.raises(Refused):  # the actor listens elsewhere
        house.enable("p", within=1)
    house.remove("p", force=True)
    document = config(
        interface={"types": ["x.y/1"], "socket": "a/plugin.sock"},
        env=[{"name": "SOCKET", "value": "a/plugin.sock"}],
        user={"uid": USER, "gid": USER},
    )
    house.create("p", document)
    house.enable("p")
    sockets = runtime_of(house, "p") / "s"
    subprocess.run(["mount", "-t", "tmpfs", "victim", victim], check=True)
    before = (victim.stat().st_uid, victim.stat().st_gid, stat.S_IMODE(victim.stat().st_mode))
    if swap == "directory":
        (sockets / "a").rename(sockets / "b")
        (sockets / "a").symlink_to(victim)
    else:
        sockets.rename(sockets.with_name("moved"))
        sockets.symlink_to(victim)
    kill([house.more("p")["Pid"]])
    house.until_restarted("p", 1)
    assert (victim.stat().st_uid, victim.stat().st_gid, stat.S_IMODE(victim.stat().st_mode)) == before
    assert os.listdir(victim) == []
    assert leftovers.mounts_below(victim) == [str(victim)]
    assert not sockets.is_symlink()
    assert (sockets.stat().st_uid, (sockets / "a").stat().st_uid) == (USER, USER)
    house.remove("p", force=True)


def test_s02_a_local_user_with_the_uid_of_a_plugin_cannot_race_its_start(house: EngineProcess, victim: Path) -> None:
    house.create("p", config(user={"uid": USER, "gid": USER}))
    sockets = house.exec_root / "p" / house.inspect("p")["Id"][:12] / "s"
    race = f"while :; do ln -sfn {victim} {sockets}; rmdir {sockets}; mv {sockets} {sockets}.old; done 2>/dev/null"
    with subprocess.Popen(["/bin/sh", "-c", race], user=USER, group=USER, extra_groups=[], cwd="/") as attacker:
        try:
            for _ in range(5):
                house.enable("p")
                house.disable("p")
        finally:
            attacker.kill()
    assert victim.stat().st_uid == 0
    house.remove("p", force=True)


# hanging file systems


@pytest.mark.parametrize("where", ["over the socket", "over its directory", "beside it"])
def test_s06_a_file_system_that_hangs_below_its_socket_directory_harms_only_itself(
    own: EngineProcess, where: str
) -> None:
    own.create(
        "bad",
        config(
            interface={"types": ["x.y/1"], "socket": "a/plugin.sock"},
            env=[{"name": "SOCKET", "value": "a/plugin.sock"}],
        ),
    )
    own.create("good", config())
    own.enable("bad")
    own.enable("good")
    sockets = runtime_of(own, "bad") / "s"
    target = {"over the socket": sockets / "a", "over its directory": sockets, "beside it": sockets / "x"}[where]
    target.mkdir(exist_ok=True)
    with hanging_file_system(target):
        if where != "beside it":
            with pytest.raises(Refused, match="a link or a mount is in its way"):
                own.request_own("POST", "bad", "call?method=Plugin.Activate")
        assert "VolumeDriver" in own.call("good", "Plugin.Activate")
        kill([own.more("bad")["Pid"]])
        own.until_restarted("bad", 1)  # the mount is gone from our side
        assert "VolumeDriver" in own.call("good", "Plugin.Activate")
        own.disable("bad")
        own.remove("bad", force=True)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("verb", ["disable", "rm", "restart", "down"])
def test_s06_case_216_a_file_system_that_hangs_below_the_propagated_mount_delays_no_other_caller(
    own: EngineProcess, verb: str
) -> None:
    own.create("bad", config(propagatedMount="/data"))
    own.create("good", config())
    own.enable("bad")
    own.enable("good")
    propagated = propagated_of(own, "bad")
    targets = [propagated / name for name in ("one", "two", "three")]
    for target in targets:
        target.mkdir()
    with hanging_file_system(targets[0]), hanging_file_system(targets[1]), hanging_file_system(targets[2]):
        kill([own.more("bad")["Pid"]])
        own.until_restarted("bad", 1)
        assert "does not answer" in own.log.read_text()
        if verb == "disable":
            own.disable("bad", force=True)
            assert leftovers.mounts_below(propagated) == []
        elif verb == "rm":
            own.remove("bad", force=True)
            assert not propagated.exists()
        elif verb == "restart":
            own.request_own("POST", "bad", "restart")
            assert own.state("bad") == "ready"
        assert "VolumeDriver" in own.call("good", "Plugin.Activate")
        own.down()


def test_s06_case_216_a_file_system_that_hangs_over_the_whole_propagated_mount_is_unmounted(own: EngineProcess) -> None:
    own.create("bad", config(propagatedMount="/data"))
    own.enable("bad")
    with hanging_file_system(propagated_of(own, "bad")):
        kill([own.more("bad")["Pid"]])
        own.until_restarted("bad", 1)
        assert own.request_json("GET", "/moorage/v1/df")
        own.end()
        own.start()
        own.until("bad", "ready")
        own.disable("bad", force=True)


def test_s06_case_216_a_mount_source_that_hangs_is_named(own: EngineProcess, tmp_path: Path) -> None:
    source = tmp_path / "far away"
    source.mkdir()
    mount = {"name": "far", "source": str(source), "destination": "/far", "type": "bind", "options": ["rbind"]}
    own.create("p", config(mounts=[mount]))
    own.create("good", config())
    with hanging_file_system(source):
        with pytest.raises(Refused, match=r"cannot check .*far away, mount far .*no answer within"):
            own.enable("p")
        assert own.state("p") == "disabled"
        own.enable("good")


def test_s06_a_hanging_start_does_not_keep_the_engine_from_stopping(own: EngineProcess, tmp_path: Path) -> None:
    source = tmp_path / "far"
    source.mkdir()
    mount = {"name": "far", "source": str(source), "destination": "/far", "type": "bind", "options": ["rbind"]}
    own.create("p", config(mounts=[mount]))
    own.enable("p")
    with hanging_file_system(source):
        kill([own.more("p")["Pid"]])
        own.wait_until(
            lambda: "far" in (own.more("p")["LastExit"] or {}).get("Error", "") or own.more("p")["State"] != "ready",
            "it fails",
        )
        assert own.end() == 0


# explanations of a failure


def sparse_program(path: Path) -> None:
    """An ELF file of 241 GB that claims to have as many headers as can be."""
    head = bytearray(Path("/proc/self/exe").read_bytes()[:4096])
    head[0x28:0x30] = (240 << 30).to_bytes(8, "little")  # e_shoff
    head[0x38:0x3A] = b"\xff\xff"  # e_phnum: PN_XNUM, the number is in the first section header
    with path.open("wb") as file:
        file.write(head)
        file.truncate(241 << 30)
    path.chmod(0o755)


def test_s07_a_sparse_program_of_241_gb_is_explained_at_once(own: EngineProcess) -> None:
    own.create("p")
    own.enable("p")
    program = runtime_of(own, "p") / "root" / "actor"
    sparse_program(program.with_name("new"))
    program.with_name("new").rename(program)
    kill([own.more("p")["Pid"]])
    own.wait_until(lambda: own.more("p")["State"] == "restarting" and own.more("p")["NextTryAt"], "its start failed")
    own.disable("p")
    with pytest.raises(Refused):
        own.enable("p")
    assert own.end() == 0
    own.start()
    own.remove("p", force=True)


# deep trees


def nest(directory: Path, depth: int) -> None:
    """So many directories, one in the other, with a file in the last one."""
    current = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=current)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=current))
    os.close(current)


def test_s09_3000_nested_directories_are_measured_and_removed(own: EngineProcess) -> None:
    own.create("deep", config(propagatedMount="/data"))
    own.create("good", config(propagatedMount="/data"))
    own.enable("deep")
    own.enable("good")
    for directory in (propagated_of(own, "deep"), runtime_of(own, "deep") / "root", runtime_of(own, "deep") / "s"):
        nest(directory, 3000)
    usage = {each["Name"]: each for each in own.request_json("GET", "/moorage/v1/df")["Plugins"]}
    assert usage["deep:latest"]["DataBytes"] >= 3000 * 4096
    own.request_json("POST", "/moorage/v1/prune")
    kill([own.more("deep")["Pid"]])
    own.until_restarted("deep", 1)
    own.remove("deep", force=True)
    snapshots = own.root / "containerd" / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    assert list(snapshots.glob("rm-*")) == []
    assert [each["Name"] for each in own.plugins()] == ["good:latest"]


def test_s09_down_removes_deep_directories_too(own: EngineProcess) -> None:
    own.create("deep", config(propagatedMount="/data"))
    own.enable("deep")
    nest(runtime_of(own, "deep") / "s", 3000)
    own.down()
    assert own.left() == []


# calls that are led elsewhere


@pytest.mark.parametrize("how", ["directory", "socket", "hard link"])
def test_s10_a_call_reaches_nothing_but_the_socket_of_the_plugin(own: EngineProcess, how: str, tmp_path: Path) -> None:
    name = own.socket.name
    document = config(
        interface={"types": ["x.y/1"], "socket": f"a/{name}"}, env=[{"name": "SOCKET", "value": f"a/{name}"}]
    )
    own.create("p", document)
    own.enable("p")
    directory = runtime_of(own, "p") / "s" / "a"
    if how == "directory":
        directory.rename(directory.with_name("b"))
        directory.symlink_to(own.exec_root)
    else:
        (directory / name).unlink()
        if how == "socket":
            (directory / name).symlink_to(own.socket)
        else:
            with pytest.raises(OSError, match=r"cross-device|not permitted"):  # its mount is not part of this one
                os.link(own.socket, f"/proc/{own.more('p')['Pid']}/root/run/docker/plugins/a/{name}")
            return
    with pytest.raises(Refused, match=r"link or a mount is in its way|no socket"):
        own.request_own("POST", "p", "call?method=plugins/p/disable")
    assert own.state("p") == "ready"


def test_s10_a_socket_that_is_swapped_during_calls_leads_nowhere(own: EngineProcess, tmp_path: Path) -> None:
    """The race: the plugin swaps a link for the socket as fast as it can while calls are made."""
    own.create("p")
    own.enable("p")
    path = runtime_of(own, "p") / "s" / "plugin.sock"
    reached = threading.Event()
    with socket.socket(socket.AF_UNIX) as elsewhere:
        elsewhere.bind(str(tmp_path / "elsewhere.sock"))
        elsewhere.listen()
        elsewhere.settimeout(0.1)
        done = threading.Event()

        def swap() -> None:
            path.rename(path.with_name("real"))
            path.with_name("link").symlink_to(tmp_path / "elsewhere.sock")
            while not done.is_set():
                for each in ("link", "real"):
                    os.link(path.with_name(each), path.with_name("next"), follow_symlinks=False)
                    path.with_name("next").rename(path)

        def listen() -> None:
            while not done.is_set():
                try:
                    elsewhere.accept()[0].close()
                    reached.set()
                except TimeoutError:
                    pass

        threads = [threading.Thread(target=each) for each in (swap, listen)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(200):
                own.request("POST", "/moorage/v1/plugins/p/call?method=Plugin.Activate")
        finally:
            done.set()
            for thread in threads:
                thread.join()
    assert not reached.is_set()
    wait_until(lambda: json.dumps(own.plugins()) != "", "the engine answers")


@pytest.mark.needs("curl")
def test_case_228_the_group_of_the_engine_reaches_a_plugin_only_through_the_api(
    own: EngineProcess,
) -> None:
    """Whatever mode a plugin gives its socket: the directories above it are for root only (S01)."""
    own.create("p", config())
    own.enable("p")
    socket_of_plugin = runtime_of(own, "p") / "s" / "plugin.sock"
    socket_of_plugin.chmod(0o666)
    own.exec_root.chmod(0o711)
    os.chown(own.socket, 0, USER)  # serve --group does this

    def send(path: Path, url: str, groups: tuple[int, ...]) -> str:
        done = run_as_user(
            "curl", "-s", "-X", "POST", "--unix-socket", str(path), f"http://x/{url}", uid=USER + 1, groups=groups
        )
        return done.stdout

    call = "moorage/v1/plugins/p/call?method=Plugin.Activate"
    assert "VolumeDriver" in send(own.socket, call, (USER,))
    assert send(own.socket, call, ()) == ""
    assert send(socket_of_plugin, "Plugin.Activate", (USER,)) == ""


def test_s01_directories_that_an_operator_reaches_by_links_work_as_well(tmp_path: Path) -> None:
    """As /var/run is one, and as an operator who moves data to another disk makes one."""
    made = EngineProcess(tmp_path)
    (tmp_path / "data on another disk").mkdir()
    made.root.symlink_to(tmp_path / "data on another disk")
    other = made.exec_root.with_name(f"{made.exec_root.name}-else")  # short, as the path of a socket must be
    other.mkdir(mode=0o711)
    made.exec_root.symlink_to(other)
    try:
        made.start()
        made.create("p", config(propagatedMount="/data"))
        made.enable("p")
        kill([made.more("p")["Pid"]])
        made.until_restarted("p", 1)
        made.disable("p")
        assert leftovers.mounts_below(tmp_path, other) == []
        made.remove("p")
    finally:
        made.down()
        made.exec_root.unlink(missing_ok=True)
        shutil.rmtree(other, ignore_errors=True)
