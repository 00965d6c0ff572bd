"""Local users without privileges, and hostile plugins in containers, at the plugin proxy of a real engine."""

import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from support.engines import EngineProcess, Refused, engine
from support.foreground import wait_until
from support.hostile_plugin import add_hostile
from support.limits import limit
from support.local_user import USER, run_as_user
from support.publication import Consumer, proxy_pid
from support.reaper import remove_mounts_at_exit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

GROUP, GROUP_ID = "adm", 4

# A volume driver: the second argument is the body of a function with the name of a call and its fields.
DRIVER = """
import json, os, signal, socketserver, sys, time
from http.server import BaseHTTPRequestHandler
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a pid namespace would ignore it
exec("def result(method, fields):\\n" + "".join("    " + line + "\\n" for line in sys.argv[1].splitlines()))
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        found = result(self.path.rpartition(".")[2], fields)
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(500 if b'"Err"' in body else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
    def address_string(self):
        return ""
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    pass
Server("/run/docker/plugins/plugin.sock", Handler).serve_forever()
"""
PLAIN = """
path = "/mnt/" + str(fields.get("Name"))
if method == "Mount":
    os.makedirs(path, exist_ok=True)
return {"Mountpoint": path} if method in ("Mount", "Path") else {}
"""


@pytest.fixture(scope="module")
def shared_house() -> Iterator[EngineProcess]:
    """Below a directory that users can search, unlike those of pytest."""
    base = Path(mkdtemp(prefix="m-users-", dir="/tmp"))
    base.chmod(0o755)
    remove_mounts_at_exit(base)
    with engine(base, publish_directory=str(base / "plugins")) as made:
        yield made
    shutil.rmtree(base)


@pytest.fixture
def house(shared_house: EngineProcess) -> Iterator[EngineProcess]:
    """An engine without plugins, whose directory of sockets does not exist yet."""
    yield shared_house
    for plugin in shared_house.plugins():
        shared_house.remove(plugin["Id"], force=True)
    shutil.rmtree(shared_house.published, ignore_errors=True)


def add_driver(house: EngineProcess, name: str, body: str = PLAIN, **published: Any) -> Consumer:
    """A published driver that answers with what these lines return."""
    add_hostile(house, name, DRIVER, body, propagatedMount="/mnt")
    house.enable(name)
    house.request_own("POST", name, "publish", {"Names": [name], **published})
    return Consumer(house.published / f"{name}.sock")


def propagated(house: EngineProcess, name: str) -> Path:
    return Path(house.root, "plugins", house.inspect(name)["Id"], "propagated-mount")


# local users

ATTEMPTS = """
import os, socket, sys
def attempt(what, do, *harmless):
    try:
        do()
    except OSError as error:
        if error.errno not in (None, 1, 2, 13, 20, 21, 22, 111, *harmless):
            print(what, error)
    else:
        print(what, "succeeded")
def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
for path in sys.argv[1:]:
    attempt(f"listing {path}", lambda: os.listdir(path))
    attempt(f"connecting to {path}", lambda: connect(path))
    attempt(f"reading {path}", lambda: open(path).close())
    attempt(f"writing {path}", lambda: os.open(path, os.O_WRONLY))
    attempt(f"truncating {path}", lambda: os.truncate(path, 0))
    attempt(f"removing {path}", lambda: os.unlink(path))
    attempt(f"renaming {path}", lambda: os.rename(path, path + ".away"))
    attempt(f"changing {path}", lambda: os.chmod(path, 0o777))
    attempt(f"linking in {path}", lambda: os.symlink("/etc/passwd", path + "/link"))
    attempt(f"making a file in {path}", lambda: os.open(path + "/file", os.O_CREAT | os.O_WRONLY))
    attempt(f"linking beside {path}", lambda: os.symlink("/etc/passwd", path + ".spec"))
    attempt(f"linking {path}", lambda: os.link(path, "/tmp/linked"), 18)  # /tmp may be another file system
"""


def test_p14_a_local_user_reads_changes_and_reaches_nothing_of_the_proxy(house: EngineProcess) -> None:
    driver = add_driver(house, "v")
    mounted = driver.create_and_mount("data")
    (mounted / "secret").write_text("x")
    state = house.exec_root / "proxy"
    house.wait_until(lambda: list((state / "ledger").iterdir()), "a mount is recorded")
    every = [state, *state.rglob("*"), mounted, mounted / "secret", *mounted.parents[:2]]
    found = run_as_user("/usr/bin/python3", "-c", ATTEMPTS, *map(str, every), str(driver.socket))
    assert (found.stdout, found.stderr) == ("", "")
    found = run_as_user("/usr/bin/python3", "-c", ATTEMPTS, str(house.published))
    assert found.stdout == f"listing {house.published} succeeded\n", "the names are no secret"
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for each in state.rglob("*"):
        assert not each.lstat().st_mode & 0o077, each
        assert each.lstat().st_uid == 0
    assert driver.call("VolumeDriver.Get", {"Name": "data"})[0] == 200


@pytest.mark.parametrize("name", ["v", "vieux/sshfs"])
def test_p01_p14_a_directory_of_sockets_that_others_can_write_is_closed(house: EngineProcess, name: str) -> None:
    """A user who may rename in it puts a server of his own there, whose paths a consumer would bind."""
    directory = (house.published / name).parent
    directory.mkdir(parents=True, exist_ok=True)
    for each in {house.published, directory}:
        each.chmod(0o777)
    driver = add_driver(house, name)
    for each in {house.published, directory}:
        assert stat.S_IMODE(each.stat().st_mode) == 0o755
    moved = run_as_user("/usr/bin/mv", str(driver.socket), str(directory / "away"))
    assert "Permission denied" in moved.stderr
    assert driver.call("VolumeDriver.List")[0] == 200


@pytest.mark.parametrize("name", ["v", "vieux/sshfs"])
def test_p01_p14_a_directory_of_another_user_gets_no_socket(house: EngineProcess, name: str) -> None:
    house.published.mkdir(exist_ok=True)
    house.published.chmod(0o1777)
    squatted = (house.published / name).parent
    squatted.mkdir(exist_ok=True)
    os.chown(squatted, USER, USER)
    with pytest.raises(Refused, match=f"belongs to user {USER}, who could replace"):
        add_driver(house, name)
    assert list(squatted.iterdir()) == []
    os.chown(squatted, 0, 0)
    house.request_own("POST", name, "publish", {"Names": [name]})


@pytest.mark.parametrize("what", ["link", "dangling link", "file", "directory", "pipe", "server"])
def test_p02_what_a_user_plants_at_the_path_of_a_socket_is_never_followed(house: EngineProcess, what: str) -> None:
    """In a directory like /tmp, where others may create names."""
    victim = house.root.parent / "victim"
    victim.write_text("root's")
    victim.chmod(0o600)
    house.published.mkdir(exist_ok=True)
    house.published.chmod(0o1777)
    path = house.published / "v.sock"
    with socket.socket(socket.AF_UNIX) as server:
        if what == "link":
            path.symlink_to(victim)
        elif what == "dangling link":
            path.symlink_to(house.published / "made")
        elif what == "file":
            path.write_text("mine")
        elif what == "directory":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)
        else:
            server.bind(str(path))
            server.listen()
        os.chown(path, USER, USER, follow_symlinks=False)
        with pytest.raises(Refused, match="409: cannot publish plugin"):
            add_driver(house, "v", Group=GROUP)
        assert os.lstat(path).st_uid == USER, "it stays as it is"
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode), victim.stat().st_gid) == ("root's", 0o600, 0)
    assert not (house.published / "made").exists()


def test_p02_a_dead_socket_of_another_user_is_replaced_by_one_of_root(house: EngineProcess) -> None:
    house.published.mkdir(exist_ok=True)
    house.published.chmod(0o1777)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(house.published / "v.sock"))
    os.chown(house.published / "v.sock", USER, USER)
    os.chmod(house.published / "v.sock", 0o777)
    driver = add_driver(house, "v")
    status = os.lstat(driver.socket)
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
    assert driver.call("VolumeDriver.List")[0] == 200


RACE = """
import os, sys
path, victim = sys.argv[1:]
while True:
    for make in (lambda: os.symlink(victim, path), lambda: os.mkfifo(path), lambda: open(path, "x").close()):
        for do in (make, lambda: os.chmod(path, 0o777), lambda: os.unlink(path)):
            try:
                do()
            except OSError:
                pass
"""


def test_p02_a_user_racing_each_publication_gains_nothing(house: EngineProcess) -> None:
    victim = house.root.parent / "victim"
    victim.touch(mode=0o600)
    add_driver(house, "v")
    house.published.chmod(0o1777)
    over = threading.Event()

    def race() -> None:
        with suppress(Exception):
            while not over.is_set():
                paths = (str(house.published / "w.sock"), str(victim))
                run_as_user("/usr/bin/timeout", "1", "/usr/bin/python3", "-c", RACE, *paths)

    thread = threading.Thread(target=race)
    thread.start()
    published = 0
    try:
        for _ in range(40):
            with suppress(Refused):
                house.request_own("POST", "v", "publish", {"Names": ["v", "w"], "Group": GROUP})
                status = os.lstat(house.published / "w.sock")
                assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, GROUP_ID, 0o660)
                published += 1
            with suppress(Refused):
                house.request_own("POST", "v", "publish", {"Names": ["v"]})
    finally:
        over.set()
        thread.join()
    assert published
    assert (victim.stat().st_uid, victim.stat().st_gid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0, 0o600)


SETUID = """
path = "/mnt/" + str(fields.get("Name"))
if method == "Mount":
    os.makedirs(path, exist_ok=True)
    os.chmod(path, 0o755)
    with open(path + "/id", "wb") as file:
        file.write(open("/usr/bin/id", "rb").read())
    os.chmod(path + "/id", 0o6755)
return {"Mountpoint": path} if method in ("Mount", "Path") else {}
"""


def test_s01_p19_a_set_uid_program_in_a_volume_has_no_effect_for_members_of_the_group(house: EngineProcess) -> None:
    """They may reach the volumes of a plugin that is published for them, and nothing else of it."""
    driver = add_driver(house, "v", SETUID, Group=GROUP)
    house.root.chmod(0o711)
    mounted = driver.mount("data")
    found = run_as_user(str(mounted / "id"), groups=[GROUP_ID])
    assert f"uid={USER}" in found.stdout, found.stderr
    assert "euid=0" not in found.stdout
    assert "egid=0" not in found.stdout
    with pytest.raises(PermissionError):
        run_as_user(str(mounted / "id"))
    above = propagated(house, "v").parent
    for each in (above, above.parent, house.exec_root / "p"):
        assert run_as_user("/usr/bin/ls", str(each), groups=[GROUP_ID]).stdout == ""


# plugins in containers


def test_p07_no_second_spelling_of_a_path_mounts_a_volume(house: EngineProcess) -> None:
    twice = """return ('{"Mountpoint":"%s","mountpoint":"/etc"}' % path).encode()"""
    body = PLAIN.replace('return {"Mountpoint": path}', twice)
    driver = add_driver(house, "v", body)
    status, answered = driver.call("VolumeDriver.Mount", {"Name": "data", "ID": "1"})
    assert status == 500, answered
    assert "mounted at /etc, in its own root" in answered["Err"]


HUGE = """
path = "/mnt/" + str(fields.get("Name"))
if method == "Mount" and os.path.exists("/mnt/hostile"):
    return {"Err": "x" * 3900000}
if method == "Mount":
    os.makedirs(path, exist_ok=True)
if method == "Remove":
    os._exit(1)
return {"Mountpoint": path} if method in ("Mount", "Path") else {}
"""


def test_p11_p18_a_plugin_whose_errors_are_long_does_not_end_the_proxy(house: EngineProcess) -> None:
    """The engine killed the proxy, whose news were too long, again and again: nothing was published any more."""
    driver, other = add_driver(house, "v", HUGE), add_driver(house, "w")
    for number in range(25):
        driver.mount(f"data{number}")
    (propagated(house, "v") / "hostile").touch()
    proxy = proxy_pid(house)
    assert driver.call("VolumeDriver.Remove", {"Name": "x"})[0] == 500  # it exits
    house.until_restarted("v", 1)
    house.wait_until(
        lambda: all(each.get("Problem") for each in house.more("v")["Mounts"]), "no mount could be made again"
    )
    assert proxy_pid(house) == proxy
    assert max(len(each["Problem"]) for each in house.more("v")["Mounts"]) < 5000
    assert other.call("VolumeDriver.List")[0] == 200
    assert len(house.request("GET", "/plugins")[1]) < 1_000_000


NAMES = ["../../../etc", "/etc/passwd", "..", "a\nb", "\x1b[2Kx", "a\tb", "x" * 1000, "\u202e", "-rf", "$(id)", "%s%n"]


def test_v01_volumes_with_names_of_paths_and_control_characters_are_names(house: EngineProcess) -> None:
    body = PLAIN.replace('path = "/mnt/" + str(fields.get("Name"))', 'path = "/mnt/v"').replace(
        "else {}", f'else {{"Volumes": [{{"Name": each}} for each in {NAMES!r}]}} if method == "List" else {{}}'
    )
    driver = add_driver(house, "v", body)
    before = set(propagated(house, "v").rglob("*"))
    for name in NAMES:
        assert driver.call("VolumeDriver.Create", {"Name": name})[0] == 200
        assert driver.mount(name) == propagated(house, "v") / "v"
    listed = house.request_json("GET", "/moorage/v1/volumes?driver=v")
    assert sorted(each["Name"] for each in listed["Volumes"]) == sorted(NAMES)
    # the proxy reports mounts a moment after it has answered
    wait_until(lambda: {each["Volume"] for each in house.more("v")["Mounts"]} == set(NAMES), "all are shown", limit(10))
    for name in NAMES:
        driver.unmount(name)
    assert set(propagated(house, "v").rglob("*")) - before == {propagated(house, "v") / "v"}
    assert driver.call("VolumeDriver.Create", {"Name": "x" * 2000})[0] == 400


STATUS = """
if method == "List":
    return b'{"Volumes":[{"Name":"a","Status":' + BODY + b'},7,null,[],{"Name":{}},{"Name":"b","Mountpoint":3}]}'
return {}
"""
DEEP = b"[" * 300 + b"]" * 300


@pytest.mark.parametrize(
    "status",
    [b"1" + b"0" * 4000, b"-1e308", DEEP, b'"\\u0000"', b'{"":{"":[{}]}}'],
    ids=["digits", "float", "deep", "nul", "keys"],
)
def test_v01_a_driver_with_an_odd_list_hides_no_other_one(house: EngineProcess, status: bytes) -> None:
    add_driver(house, "v", STATUS.replace("BODY", repr(status)))
    good = 'return {"Volumes": [{"Name": "mine"}]} if method == "List" else {}'
    add_driver(house, "w", good)
    listed = house.request_json("GET", "/moorage/v1/volumes")
    assert "mine" in [each["Name"] for each in listed["Volumes"]]
    assert "Traceback" not in house.log.read_text()
