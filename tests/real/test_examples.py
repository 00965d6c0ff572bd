"""The examples by themselves: hello-static's build, and hello-volume's driver as a process on a unix socket.

The driver mounts, so it runs in a mount namespace of its own, which a sleeping process keeps open: what it leaves can
be seen there after its exit, and never reaches the machine.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from support.engines import UnixConnection
from support.limits import limit

pytestmark = pytest.mark.real
needs_compiler = pytest.mark.needs("static-cc")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_SECONDS = limit(20.0)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not true():
        assert process.poll() is None, f"the plugin ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


class Connection(UnixConnection):
    """Calls of a plugin over one connection."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TIMEOUT_SECONDS)

    def exchange(self, path: str, body: bytes, verb: str = "POST") -> tuple[int, dict[str, object]]:
        self.request(verb, path, body, {"Accept": "application/vnd.docker.plugins.v1.2+json"})
        response = self.getresponse()
        answer = json.loads(response.read())
        assert isinstance(answer, dict)
        return response.status, answer


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name: the path of a unix socket ends at 107 bytes, tmp_path may be longer."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as name:
        yield Path(name)


# ---- hello-static


@pytest.fixture
def hello_static(short: Path) -> Path:
    shutil.copytree(EXAMPLES / "hello-static", short / "it", ignore=shutil.ignore_patterns("rootfs"))
    subprocess.run([short / "it/build"], check=True, capture_output=True)
    return short / "it"


@pytest.fixture
def hello(hello_static: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """hello-static in a root that contains nothing else, where only a static program can run."""
    sockets = hello_static / "rootfs/run/docker/plugins"
    sockets.mkdir(parents=True)
    (sockets / "hello.sock").touch()  # of a killed predecessor
    with subprocess.Popen(["chroot", hello_static / "rootfs", "/hello"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening on /run/docker/plugins/hello.sock\n"
            yield process, sockets / "hello.sock"
        finally:
            process.kill()


@needs_compiler
def test_hello_static_is_built_into_one_static_binary_that_answers(
    hello: tuple[subprocess.Popen[bytes], Path],
) -> None:
    for path, expected in (("/Plugin.Activate", {"Implements": ["hello"]}), ("/Any.Thing", {"Hello": "world"})):
        with closing(Connection(hello[1])) as connection:
            assert connection.exchange(path, b"{}") == (200, expected)


@needs_compiler
def test_hello_static_answers_a_call_that_comes_in_pieces(hello: tuple[subprocess.Popen[bytes], Path]) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(hello[1]))
        for piece in (b"POST /Plugin.Act", b"ivate HTTP/1.1\r\ncontent-length: 4\r", b"\n\r\n{", b"  ", b"}"):
            caller.sendall(piece)
            time.sleep(0.01)
        answer = b"".join(iter(lambda: caller.recv(4096), b""))
    assert answer.endswith(b'{"Implements":["hello"]}\n')


@needs_compiler
def test_hello_static_ends_on_sigterm_with_0_and_removes_its_socket(
    hello: tuple[subprocess.Popen[bytes], Path],
) -> None:
    process, path = hello
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_SECONDS) == 0
    assert not path.exists()


@pytest.mark.parametrize(("compiler", "said"), [("no-such-compiler", "there is no C compiler"), ("false", "libc.a")])
def test_hello_static_build_says_what_is_missing_and_leaves_nothing(short: Path, compiler: str, said: str) -> None:
    shutil.copytree(EXAMPLES / "hello-static", short / "it", ignore=shutil.ignore_patterns("rootfs"))
    done = subprocess.run([short / "it/build"], env={**os.environ, "CC": compiler}, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr
    assert [path for path in (short / "it").rglob("*hello*") if path.is_file()] == []


# ---- hello-volume


class Driver:
    """hello-volume's program in the namespace of a holder; may be started again."""

    def __init__(self, directory: Path, holder: int) -> None:
        self.directory = directory
        self.holder = holder
        self.root = directory / "v"
        self.socket = directory / "s"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *wrapper: str) -> None:
        assert self.process is None
        program = EXAMPLES / "hello-volume/rootfs/plugin/hello_volume.py"
        entrypoint = json.loads((EXAMPLES / "hello-volume/config.json").read_text())["entrypoint"]
        enter = ["nsenter", f"--mount=/proc/{self.holder}/ns/mnt", *wrapper]
        environment = {"HELLO_ROOT": str(self.root), "PLUGIN_SOCKET": str(self.socket), "DEBUG": "1"}
        with (self.directory / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [*enter, *entrypoint[:-1], str(program)],
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
            )
        wait_until(lambda: can_connect(self.socket), self.process)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(TIMEOUT_SECONDS)
        self.process = None
        return code

    def raw(self, path: str, body: bytes, verb: str = "POST") -> tuple[int, dict[str, object]]:
        with closing(Connection(self.socket)) as connection:
            return connection.exchange(path, body, verb)

    def call(self, method: str, **arguments: object) -> dict[str, object]:
        """Call a method that must succeed."""
        status, answer = self.raw(f"/VolumeDriver.{method}", json.dumps(arguments).encode())
        assert (status, answer.get("Err", "")) == (200, "")
        return answer

    def refused(self, method: str, status: int = 500, **arguments: object) -> str:
        """Call a method that must fail; why it did."""
        found, answer = self.raw(f"/VolumeDriver.{method}", json.dumps(arguments).encode())
        assert found == status
        assert list(answer) == ["Err"]
        return str(answer["Err"])

    def names(self) -> list[str]:
        volumes = self.call("List")["Volumes"]
        assert isinstance(volumes, list)
        return [volume["Name"] for volume in volumes]

    def mounts(self) -> list[str]:
        """The mount points below our root, as the namespace has them."""
        lines = Path(f"/proc/{self.holder}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if line.split()[4].startswith(str(self.root))]

    def inside(self, path: str) -> Path:
        """A path as the namespace sees it."""
        return Path(f"/proc/{self.holder}/root{path}")

    def said(self) -> str:
        return (self.directory / "output").read_text()


@pytest.fixture
def stopped(short: Path) -> Iterator[Driver]:
    """A driver that is not yet started."""
    command = ["unshare", "--mount", "--propagation", "private", "sleep", "1000"]
    with subprocess.Popen(command) as holder:
        driver = Driver(short, holder.pid)
        try:
            own_namespace = os.readlink("/proc/self/ns/mnt")
            wait_until(lambda: os.readlink(f"/proc/{holder.pid}/ns/mnt") != own_namespace, holder)
            wait_until(lambda: Path(f"/proc/{holder.pid}/comm").read_text() == "sleep\n", holder)
            yield driver
        finally:
            holder.kill()
            if driver.process is not None:
                driver.process.kill()
                driver.process.wait()


@pytest.fixture
def driver(stopped: Driver) -> Driver:
    stopped.start()
    return stopped


def test_activation_says_that_it_is_a_volume_driver(driver: Driver) -> None:
    assert driver.raw("/Plugin.Activate", b"") == (200, {"Implements": ["VolumeDriver"]})
    assert driver.call("Capabilities") == {"Capabilities": {"Scope": "local"}}


def test_a_volume_lives_from_create_to_remove(driver: Driver) -> None:
    assert driver.call("Create", Name="a", Opts={"mode": "0750"}) == {}
    assert driver.call("Path", Name="a") == {"Mountpoint": ""}
    point = str(driver.root / "mounted/a")
    assert driver.call("Mount", Name="a", ID="one") == {"Mountpoint": point}
    assert driver.mounts() == [point]
    assert driver.inside(point).stat().st_mode & 0o7777 == 0o750

    driver.inside(point).joinpath("file").write_text("text")
    assert (driver.root / "store/a/file").read_text() == "text"

    assert driver.call("Path", Name="a") == {"Mountpoint": point}
    volume = driver.call("Get", Name="a")["Volume"]
    assert isinstance(volume, dict)
    assert time.strptime(volume.pop("CreatedAt"), "%Y-%m-%dT%H:%M:%SZ")
    assert volume == {"Name": "a", "Mountpoint": point, "Status": {"Users": ["one"], "Options": {"mode": "0750"}}}

    assert driver.call("Unmount", Name="a", ID="one") == {}
    assert driver.mounts() == []
    assert not Path(point).exists()
    assert driver.call("Remove", Name="a") == {}
    assert driver.call("List") == {"Volumes": []}
    assert list((driver.root / "store").iterdir()) == []


def test_a_volume_is_mounted_for_the_first_user_and_unmounted_after_the_last(driver: Driver) -> None:
    driver.call("Create", Name="a")
    first = driver.call("Mount", Name="a", ID="one")
    assert driver.call("Mount", Name="a", ID="two") == first
    assert driver.call("Mount", Name="a", ID="two") == first
    assert len(driver.mounts()) == 1
    driver.call("Unmount", Name="a", ID="two")
    assert driver.refused("Remove", Name="a") == "volume a is in use by one"
    driver.call("Unmount", Name="a", ID="stranger")
    assert len(driver.mounts()) == 1
    driver.call("Unmount", Name="a", ID="one")
    driver.call("Unmount", Name="a", ID="one")
    assert driver.mounts() == []


def test_create_may_be_repeated_with_the_same_options_only(driver: Driver) -> None:
    driver.call("Create", Name="a", Opts={"mode": "0700"})
    driver.call("Create", Name="a", Opts={"mode": "0700"})
    assert driver.refused("Create", Name="a") == "volume a exists with other options"
    assert driver.names() == ["a"]


@pytest.mark.parametrize("method", ["Get", "Path", "Mount", "Unmount", "Remove"])
def test_a_volume_that_does_not_exist_is_refused_by_name(driver: Driver, method: str) -> None:
    assert driver.refused(method, Name="nobody", ID="one") == "no such volume: nobody"


@pytest.mark.parametrize("method", ["Create", "Get", "Path", "Mount", "Unmount", "Remove"])
def test_a_name_that_could_leave_the_directory_is_refused(driver: Driver, method: str) -> None:
    for name in ["", ".", "..", "../a", "a/b", ".new-a", "a\n", "a\0", "\u00e4", "x" * 129, "\ud800"]:
        assert "is not the name of a volume" in driver.refused(method, Name=name, ID="one")
    other: list[object] = [5, None, ["a"]]
    for value in other:
        assert driver.refused(method, 400, Name=value, ID="one").startswith("the field Name ")
    assert not (driver.root / "store").exists()


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        ({"size": "1g", "mode": "755"}, 500, "unknown option 'size'"),
        ({"mode": "9"}, 500, "is not a mode"),
        ({"mode": 493}, 400, "must be a text"),
        (["mode"], 400, "must be an object"),
    ],
)
def test_options_that_are_not_known_are_refused(driver: Driver, options: object, status: int, said: str) -> None:
    assert said in driver.refused("Create", status, Name="a", Opts=options)
    assert driver.names() == []


def test_mount_and_unmount_need_an_id(driver: Driver) -> None:
    driver.call("Create", Name="a")
    for method in ("Mount", "Unmount"):
        assert "needs the ID of its user" in driver.refused(method, Name="a", ID="")
        for user in (None, 7):
            assert driver.refused(method, 400, Name="a", ID=user).startswith("the field ID ")
    assert driver.mounts() == []


def test_a_body_that_is_not_a_json_object_is_answered_with_400(driver: Driver) -> None:
    for body in (b"{", b"\xff\xfe", b"nonsense", b'{"Name": }', b"[" * 100_000):
        status, answer = driver.raw("/VolumeDriver.Create", body)
        assert status == 400
        assert str(answer["Err"]).startswith("the body is not JSON")
    for body in (b"[]", b"null", b'"a"', b"1"):
        assert driver.raw("/VolumeDriver.Create", body) == (400, {"Err": "the body is not a JSON object"})


def test_an_unknown_method_is_answered_with_404_as_dockers_clients_expect(driver: Driver) -> None:
    assert driver.raw("/VolumeDriver.Fly", b"{}") == (404, {"Err": "unknown method /VolumeDriver.Fly"})


def test_a_get_is_refused_in_json_and_a_chunked_body_is_read(driver: Driver) -> None:
    status, answer = driver.raw("/VolumeDriver.List", b"", verb="GET")
    assert (status, list(answer)) == (405, ["Err"])
    with closing(Connection(driver.socket)) as connection:
        connection.request("POST", "/VolumeDriver.Create", iter([b'{"Name"', b': "a"}']), encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (200, {})
    assert driver.names() == ["a"]


def test_several_calls_go_over_one_connection_also_after_a_refusal(driver: Driver) -> None:
    with closing(Connection(driver.socket)) as connection:
        for _ in range(3):
            assert connection.exchange("/VolumeDriver.Get", b'{"Name": "a"}') == (500, {"Err": "no such volume: a"})
            assert connection.exchange("/VolumeDriver.List", b"{}") == (200, {"Volumes": []})


def test_volumes_and_their_users_survive_a_restart(driver: Driver) -> None:
    driver.call("Create", Name="a", Opts={"mode": "0700"})
    driver.call("Create", Name="b")
    point = str(driver.call("Mount", Name="a", ID="one")["Mountpoint"])
    driver.inside(point).joinpath("file").write_text("text")
    before = driver.call("Get", Name="b")
    assert driver.stop() == 0
    assert driver.mounts() == []
    assert not driver.socket.exists()

    driver.start()
    assert driver.names() == ["a", "b"]
    assert driver.call("Get", Name="b") == before
    assert driver.call("Path", Name="a") == {"Mountpoint": point}
    assert driver.inside(point).joinpath("file").read_text() == "text"
    driver.call("Mount", Name="a", ID="two")
    driver.call("Unmount", Name="a", ID="one")
    assert driver.mounts() == [point]
    driver.call("Unmount", Name="a", ID="two")
    assert driver.mounts() == []


def test_what_a_killed_plugin_has_mounted_is_mounted_once_at_the_next_start(driver: Driver) -> None:
    for name in ("a", "b"):
        driver.call("Create", Name=name)
        driver.call("Mount", Name=name, ID="one")
    driver.call("Unmount", Name="b", ID="one")
    point = str(driver.root / "mounted/a")
    assert driver.stop(signal.SIGKILL) == -signal.SIGKILL
    assert driver.mounts() == [point]

    driver.start()
    assert driver.mounts() == [point]
    assert driver.names() == ["a", "b"]
    assert driver.call("Mount", Name="a", ID="one") == {"Mountpoint": point}
    assert driver.refused("Remove", Name="a") == "volume a is in use by one"


def test_sigterm_ends_it_at_once_with_open_files_and_idle_callers(driver: Driver) -> None:
    driver.call("Create", Name="a")
    point = str(driver.call("Mount", Name="a", ID="one")["Mountpoint"])
    with socket.socket(socket.AF_UNIX) as idle, driver.inside(point).joinpath("open").open("w"):
        idle.connect(str(driver.socket))
        assert driver.raw("/Plugin.Activate", b"")[0] == 200  # although the idle one was first
        assert driver.stop() == 0
    assert driver.mounts() == []
    assert driver.said().endswith("stopped\n")


def test_a_volume_with_open_files_is_unmounted_when_they_are_closed(driver: Driver) -> None:
    driver.call("Create", Name="a")
    point = str(driver.call("Mount", Name="a", ID="one")["Mountpoint"])
    with driver.inside(point).joinpath("open").open("w"):
        assert driver.refused("Unmount", Name="a", ID="one") == "cannot unmount volume a: Device or resource busy"
        assert driver.refused("Remove", Name="a") == "volume a is in use by one"
    driver.call("Unmount", Name="a", ID="one")
    assert driver.mounts() == []


def test_without_the_capability_mount_says_so_and_leaves_nothing(stopped: Driver) -> None:
    stopped.start("setpriv", "--bounding-set=-sys_admin")
    stopped.call("Create", Name="a")
    assert stopped.refused("Mount", Name="a", ID="one") == "cannot mount volume a: Operation not permitted"
    assert stopped.call("Path", Name="a") == {"Mountpoint": ""}
    assert list((stopped.root / "mounted").iterdir()) == []
    stopped.call("Remove", Name="a")


def test_concurrent_calls_end_as_if_they_had_come_one_after_the_other(driver: Driver) -> None:
    def live(worker: int) -> None:
        for _ in range(5):
            own = f"own-{worker}"
            driver.call("Create", Name="shared")
            driver.call("Create", Name=own)
            driver.call("Mount", Name=own, ID="me")
            driver.call("Mount", Name="shared", ID=own)
            assert own in driver.names()
            driver.call("Unmount", Name=own, ID="me")
            driver.call("Remove", Name=own)
            driver.call("Unmount", Name="shared", ID=own)

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(live, worker) for worker in range(16)]:
            done.result()
    assert driver.names() == ["shared"]
    assert driver.mounts() == []
    assert [path.name for path in (driver.root / "store").iterdir()] == ["shared"]
    assert driver.call("Get", Name="shared")["Volume"] is not None


def test_debug_shows_each_call_and_its_answer(driver: Driver) -> None:
    driver.call("Create", Name="a")
    assert "/VolumeDriver.Create is answered with 200\n" in driver.said()
