"""Attacks that were withstood when they were first tried (at 70b8c43), so that they stay so.

Those with packages and registries are in test_hostile_packages.py and test_hostile_registry.py.
"""

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from moorage import errors
from moorage.foreground.temporary_directories import create
from moorage.logs.writer import read_counts
from support.attempts import add_attempts, read_inside
from support.engines import EngineProcess, Refused, config, engine
from support.foreground import wait_until
from support.hostile_plugin import SOCKET, add_hostile
from support.limits import limit
from support.local_user import USER, run_as_user

pytestmark = [pytest.mark.needs("static-cc")]

SECRET = "a-secret-of-whoever-starts-the-engine"
ENGINE_BYTES = 200 << 20
"""More memory than an engine or its log keeper ever has; one that keeps what comes would have much more."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine that was started with a secret in its environment."""
    os.environ["MOORAGE_TEST_SECRET"] = SECRET
    try:
        with engine(tmp_path_factory.mktemp("engine")) as made:
            del os.environ["MOORAGE_TEST_SECRET"]
            yield made
    finally:
        os.environ.pop("MOORAGE_TEST_SECRET", None)


@pytest.fixture
def house(shared: EngineProcess) -> Iterator[EngineProcess]:
    yield shared
    for plugin in shared.plugins():
        shared.remove(plugin["Name"], force=True)


def engine_pid(house: EngineProcess) -> int:
    assert house.child is not None
    return house.child.pid


def keeper_pid(house: EngineProcess) -> int:
    return int(next(house.exec_root.rglob("k.sock")).with_name("pid").read_text())


def memory_bytes(pid: int) -> int:
    """The most that a process ever had."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def plugin_id(house: EngineProcess, name: str) -> str:
    return str(house.inspect(name)["Id"])


# ------------------------------------------------------------------------------------------------------ floods


def test_a_flood_of_output_is_bounded_on_the_disk_and_in_memory_and_other_logs_go_on(house: EngineProcess) -> None:
    house.create("flood", config("flood=300000000"))
    house.create("other", config("count=50"))
    house.enable("flood")
    house.enable("other")
    logs = house.root / "logs" / plugin_id(house, "flood")
    wait_until(lambda: read_counts(str(logs))[0] > 200 << 20, "200 MB of output", limit(120))
    assert sum(each.stat().st_size for each in logs.iterdir()) < 20 << 20
    before = len(house.logs("other"))
    wait_until(lambda: len(house.logs("other")) > before + 20, "the other plugin's lines go on")
    numbers = [int(line["text"]) for line in house.logs("other") if line["stream"] == "stdout"]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert memory_bytes(engine_pid(house)) < ENGINE_BYTES
    assert memory_bytes(keeper_pid(house)) < ENGINE_BYTES
    house.disable("flood")


def test_a_line_without_an_end_is_cut_into_pieces(house: EngineProcess) -> None:
    program = "import os\nwhile True: os.write(1, b'x' * 65536)"
    add_hostile(house, "endless", program)
    with pytest.raises(Refused):
        house.enable("endless", 3)  # it never listens, and writes meanwhile
    logs = house.root / "logs" / plugin_id(house, "endless")
    assert sum(each.stat().st_size for each in logs.iterdir()) < 20 << 20
    assert memory_bytes(keeper_pid(house)) < ENGINE_BYTES
    assert memory_bytes(engine_pid(house)) < ENGINE_BYTES


# ------------------------------------------------------------------------------------------------- slow clients


def test_bodies_that_never_end_delay_no_other_caller(house: EngineProcess) -> None:
    house.create("p")
    targets = (
        "POST /plugins/create?name=slow",
        "POST /moorage/v1/load",
        "POST /plugins/p/set",
        "POST /plugins/pull?remote=a",
    )
    with ExitStack() as clients:
        for index in range(60):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(house.socket))
            head = f"{targets[index % len(targets)]} HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: 1000000\r\n\r\n[".encode())
        house.enable("p")
        assert house.state("p") == "ready"
        house.disable("p")
        assert memory_bytes(engine_pid(house)) < ENGINE_BYTES
    wait_until(lambda: [each["Name"] for each in house.plugins()] == ["p:latest"], "what was begun is undone")


def test_a_client_that_does_not_read_delays_no_other_caller(house: EngineProcess) -> None:
    house.create("p", config("flood=50000000"))
    house.enable("p")
    with ExitStack() as clients:
        for _ in range(20):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(str(house.socket))
            client.sendall(b"GET /moorage/v1/plugins/p/logs?follow=1 HTTP/1.1\r\nHost: m\r\n\r\n")
            client.sendall(b"GET /events HTTP/1.1\r\nHost: m\r\n\r\n")
        counts = str(house.root / "logs" / plugin_id(house, "p"))
        begin = read_counts(counts)[0]
        wait_until(lambda: read_counts(counts)[0] > begin + (50 << 20), "the plugin writes on", limit(60))
        assert house.state("p") == "ready"
        house.disable("p")
        assert memory_bytes(engine_pid(house)) < ENGINE_BYTES


# ----------------------------------------------------------------------------------------------- slow plugins

DRIP = f"""
import socket, time
s = socket.socket(socket.AF_UNIX)
s.bind({SOCKET!r})
s.listen()
clients = []
print("listens", flush=True)
s.settimeout(0.05)
while True:
    try:
        c, _ = s.accept()
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000000\\r\\n\\r\\n")
        clients.append(c)
    except OSError:
        pass
    for c in clients:
        try:
            c.send(b"x")
        except OSError:
            clients.remove(c)
            break
"""
DEAF = f"import socket, time\ns = socket.socket(socket.AF_UNIX)\ns.bind({SOCKET!r})\ns.listen(1)\ntime.sleep(10**6)\n"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("program", [DRIP, DEAF], ids=["a byte at a time", "never accepts"])
def test_a_plugin_that_answers_slowly_or_never_harms_only_its_caller(house: EngineProcess, program: str) -> None:
    add_hostile(house, "slow", program)
    house.create("p")
    house.enable("p")
    house.enable("slow")
    before = len(os.listdir(f"/proc/{engine_pid(house)}/fd"))
    failures: list[str] = []

    def call() -> None:
        body = b"x" * 3_000_000  # more than fits into a socket that is not read
        status, answer = house.request("POST", "/moorage/v1/plugins/slow/call?method=A&timeout=2", body)
        failures.append(f"{status} {answer.decode()}")

    callers = [threading.Thread(target=call) for _ in range(20)]
    for each in callers:
        each.start()
    assert "VolumeDriver" in house.call("p", "Plugin.Activate")
    for each in callers:
        each.join()
    assert len(failures) == 20
    assert all(each.startswith("503") for each in failures), failures
    wait_until(lambda: len(os.listdir(f"/proc/{engine_pid(house)}/fd")) <= before + 2, "the descriptors are closed")
    house.disable("slow")


REPLACEMENT = f"""
import os, sys, time
path, how = {SOCKET!r}, sys.argv[1]
if how == "fifo": os.mkfifo(path)
elif how == "directory": os.mkdir(path)
elif how == "file": open(path, "w").write("x" * 1000)
elif how == "device": os.mknod(path, 0o020666, os.makedev(1, 5))
else: os.symlink(how, path)
print("made", flush=True)
time.sleep(10**6)
"""


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "how", ["fifo", "directory", "file", "device", "/dev/zero", "plugin.sock", "../../../../../run/docker.sock"]
)
def test_something_else_instead_of_the_socket_is_no_socket(house: EngineProcess, how: str) -> None:
    add_hostile(house, "odd", REPLACEMENT, how)
    house.create("p")
    house.enable("p")
    with pytest.raises(Refused, match="did not accept a connection"):
        house.enable("odd", 2)
    assert "VolumeDriver" in house.call("p", "Plugin.Activate")
    house.remove("odd", force=True)


# ------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        ".",
        "a/./b",
        "x\0y",
        "x\ny",
        "%2e%2e",
        "a" * 300,
        "\\..\\x",
        "ä",
    ],
)
def test_a_name_that_is_a_path_is_no_name(house: EngineProcess, name: str) -> None:
    before = sorted(os.listdir(house.root / "plugins"))
    with pytest.raises(Refused) as refused:
        house.create(name)
    assert refused.value.status == 400
    for method, path in (("GET", "json"), ("POST", "enable"), ("POST", "disable"), ("DELETE", "")):
        status, _ = house.request(method, f"/plugins/{quote(name, safe='')}/{path}".rstrip("/"))
        assert status in (400, 404), (method, path)
    assert sorted(os.listdir(house.root / "plugins")) == before


@pytest.mark.parametrize(
    "path",
    [
        "/plugins/%2e%2e%2f%2e%2e%2fetc/json",
        "/plugins/..%2f..%2f/json",
        "/plugins/../../json",
        "/plugins/p/../../x/json",
        "/moorage/v1/plugins/%2e%2e/logs",
        "/moorage/v1/plugins/p%2f..%2f..%2fx/logs",
        "/plugins/p%00/json",
        "/plugins//p/json",
        "/plugins/p%2fjson/json",
        "/v1.41/../plugins/p/json",
        "/moorage/v1/plugins/p/exec/..%2f..%2fx/resize",
    ],
)
def test_a_path_of_the_api_leads_to_nothing_else(house: EngineProcess, path: str) -> None:
    house.create("p")
    status, answer = house.request("GET", path)
    assert status in (400, 404), answer


# -------------------------------------------------------------------------------------------------- local users


def test_a_local_user_can_replace_nothing_that_the_engine_reads(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    id = plugin_id(house, "p")
    record, log = house.root / "plugins" / id / "plugin.json", house.root / "logs" / id / "current"
    wait_until(record.exists, "the record")
    for path in (record, log, house.root / "engine.json", house.exec_root / "containerd" / "config.toml", house.socket):
        for words in (
            ("ln", "-sfn", "/etc/passwd", str(path)),
            ("rm", "-f", str(path)),
            ("cp", "/dev/null", str(path)),
        ):
            assert run_as_user(*words).returncode != 0, (words, path)
    for directory in (house.root, house.root / "plugins", record.parent, log.parent, house.exec_root):
        assert run_as_user("touch", str(directory / "new")).returncode != 0, directory
        if directory != house.exec_root:  # whose names all users may know
            assert run_as_user("ls", str(record.parent)).returncode != 0, directory
    assert "VolumeDriver" in house.call("p", "Plugin.Activate")


def test_a_local_user_reads_and_ends_no_process_of_the_engine(house: EngineProcess) -> None:
    house.create("p")
    house.enable("p")
    containerd = int((house.exec_root / "containerd" / "pid").read_text().split()[0])
    for pid in (engine_pid(house), keeper_pid(house), containerd, house.more("p")["Pid"]):
        for number in ("KILL", "TERM", "STOP", "HUP", "USR1"):
            assert run_as_user("sh", "-c", f"kill -{number} {pid}").returncode != 0, (pid, number)
        for name in ("environ", "mem", "maps", "fd/0"):
            assert run_as_user("cat", f"/proc/{pid}/{name}").returncode != 0, (pid, name)
        assert run_as_user("ls", f"/proc/{pid}/fd").returncode != 0
    assert house.state("p") == "ready"


def test_the_api_is_for_root_and_the_group_of_the_socket_only(house: EngineProcess) -> None:
    status = house.socket.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o660)
    client_program = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(house.socket)!r}); s.send(b'x')"
    python = ("/usr/bin/python3", "-I", "-c", client_program)
    assert "PermissionError" in run_as_user(*python).stderr
    mode = stat.S_IMODE(house.exec_root.stat().st_mode)
    house.exec_root.chmod(0o711)  # as the engine makes it; this one was made by the test
    os.chown(house.socket, -1, USER + 1)
    try:
        assert "PermissionError" in run_as_user(*python).stderr
        assert run_as_user(*python, groups=[USER + 1]).returncode == 0
    finally:
        os.chown(house.socket, -1, status.st_gid)
        house.exec_root.chmod(mode)


# ----------------------------------------------------------------------------------------- out of a plugin


def test_nothing_of_the_engine_leaks_into_a_plugin(house: EngineProcess) -> None:
    assert SECRET in Path(f"/proc/{engine_pid(house)}/environ").read_text()
    house.create("p")
    house.enable("p")
    pid = house.more("p")["Pid"]
    assert SECRET not in house.call("p", "env")
    assert SECRET not in Path(f"/proc/{pid}/environ").read_text()
    assert SECRET not in Path(f"/proc/{keeper_pid(house)}/environ").read_text()
    opened = {number: os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
    own = {each for each in opened.values() if each.startswith(("pipe:", "socket:")) or each == "/dev/null"}
    others = {
        number: target for number, target in opened.items() if int(number) > 2 and not target.startswith("socket:")
    }
    assert others == {}
    assert all(target in own or "/stdout" in target or "/stderr" in target for target in opened.values()), opened


def test_a_process_that_is_added_to_a_plugin_inherits_nothing(house: EngineProcess) -> None:
    add_hostile(house, "p", DEAF)
    house.enable("p")
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "exec", "p"]
    show = "import os; print([each for each in os.listdir('/proc/self/fd') if int(each) > 2]); print(dict(os.environ))"
    done = subprocess.run(
        [*command, "/usr/bin/python3", "-I", "-S", "-c", show], capture_output=True, text=True, timeout=limit(60)
    )
    assert done.returncode == 0, done.stderr
    descriptors, environment = done.stdout.splitlines()
    assert len(descriptors.split(",")) <= 1, descriptors  # the directory that is being listed is closed by then
    assert SECRET not in environment


def test_a_plugin_among_the_processes_of_the_host_does_not_read_the_engine(house: EngineProcess) -> None:
    add_attempts(house, "p", pidhost=True)
    for name in ("environ", "mem", "maps"):
        shown = read_inside(house, "p", f"/proc/{engine_pid(house)}/{name}")
        assert SECRET not in shown
        assert "/python" not in shown


# ------------------------------------------------------------------------------------------- the command line

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(at)}: &{chr(at)} [{','.join([f'*{chr(at - 1)}'] * 9)}]\n" for at in range(ord("b"), ord("z"))
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        f"plugins: {'[' * 20_000}",
        "plugins: &a [*a]",
        "plugins: !!python/object/apply:os.system ['touch /x']",
        BOMB + "plugins: *y\n",
    ],
    ids=["aliases", "depth", "itself", "an object", "aliases as plugins"],
)
def test_a_bomb_in_yaml_is_refused_at_once(house: EngineProcess, tmp_path: Path, text: str) -> None:
    file = tmp_path / "plugins.yaml"
    file.write_text(text)
    command = f"ulimit -v 800000 -t 20; exec {sys.executable} -m moorage --host unix://{house.socket} apply -f {file}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=limit(60))
    assert done.returncode == 1
    assert done.stderr.startswith("moorage: ")
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 2000


ANSWERS = {
    "no JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<a>b\n",
    "depth": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
    "another's plugins": b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n[{"Name": "a"}]',
    "an object": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "an error of depth": b"HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
    "no HTTP": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "control characters": b'HTTP/1.1 500 No\r\nContent-Length: 25\r\n\r\n{"message": "a\\u001b[2Jb"}',
    "nothing": b"",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("words", [("ls",), ("inspect", "p"), ("logs", "p"), ("df",)], ids=lambda words: words[0])
def test_another_server_at_the_socket_is_an_error_of_one_sentence(
    tmp_path: Path, answer: bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        command = [sys.executable, "-m", "moorage", *words]
        environment = {**os.environ, "MOORAGE_HOST": f"unix://{path}"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit(60), env=environment)
        listener.shutdown(socket.SHUT_RDWR)
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    if done.returncode != 0:
        assert done.stderr.startswith("moorage: ")


# -------------------------------------------------------------------------------------- squatted directories


def test_a_directory_that_exists_before_is_never_used_for_a_run(tmp_path: Path) -> None:
    base, victim = Path(f"/tmp/moorage-squat-{os.getpid()}"), tmp_path / "victim"
    base.mkdir(mode=0o1777)
    base.chmod(0o1777)
    victim.mkdir()
    try:
        for index, words in enumerate((("mkdir",), ("ln", "-s", str(victim)), ("mkfifo",))):
            data, state = base / f"moorage-run-{index}", Path(f"/run/moorage-squat-{os.getpid()}-{index}")
            assert run_as_user(*words, str(data)).returncode == 0
            with pytest.raises(errors.Invalid, match="cannot use"):
                create(state, data, "0" * 64)
            assert data.lstat().st_uid == USER
            assert not state.exists()
        assert list(victim.iterdir()) == []
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize(("owner", "mode"), [(USER, 0o755), (0, 0o777), (USER, 0o1777)])
def test_a_directory_where_others_can_put_a_link_is_refused_for_a_run(tmp_path: Path, owner: int, mode: int) -> None:
    base, state = Path(f"/tmp/moorage-squat-{os.getpid()}"), Path(f"/run/moorage-squat-{os.getpid()}")
    (base / "inner").mkdir(parents=True)
    base.chmod(mode)
    os.chown(base, owner, -1)
    try:
        with pytest.raises(errors.Invalid, match=r"cannot use .*(user|users)"):
            create(state, base / "inner" / "moorage-run-0", "0" * 64)
        assert not state.exists()
        assert list((base / "inner").iterdir()) == []
    finally:
        shutil.rmtree(base)
