"""``moorage test``: it passes what is right, in Python and as Go's helpers do it, and finds each planted bug."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moorage.cli.cmd_create import package
from moorage.client import MoorageClient
from moorage.conformance.suite import CheckResult, kinds_of, run_suite
from moorage.conformance.target import EngineTarget
from moorage.scaffold.creation import copy_kit
from support import go_shapes
from support.engines import EngineProcess, engine
from support.foreground import Machine, environment
from support.limits import limit

pytestmark = pytest.mark.real

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_SECONDS = limit(60.0)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


def check(house: EngineProcess, directory: Path, name: str = "tested", **options: str) -> list[CheckResult]:
    """The results of the suite for the plugin in a directory, installed in this engine; ``options`` of its volumes."""
    client = MoorageClient(f"unix://{house.socket}")
    client.create(name, package(directory))
    try:
        client.grant(name)
        client.enable(name)
        target = EngineTarget(client, name, TIMEOUT_SECONDS)
        return run_suite(target, kinds_of(target, TIMEOUT_SECONDS), TIMEOUT_SECONDS, lambda result: None, options)
    finally:
        client.remove(name, force=True)


def failures(results: list[CheckResult]) -> dict[str, str]:
    return {each.id: each.text for each in results if each.outcome == "failed"}


def moorage(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moorage", *words]
    return subprocess.run(
        command, env=environment(more), capture_output=True, text=True, timeout=limit(120), check=False
    )


def test_a_directory_is_tested_in_an_engine_that_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    done = machine.moorage("test", EXAMPLES / "hello-volume", "DEBUG=1", "--junitxml", report)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1].startswith("20 checks: 20 passed, 0 failed, 0 skipped, in ")
    (suite,) = ElementTree.parse(tmp_path / "report.xml").getroot()
    assert {suite.get(name) for name in ("failures", "errors", "skipped")} == {"0"}
    assert len(suite) == 20
    machine.assert_nothing_left()


# ---- planted bugs: each is the end of hello-volume's program, before its last lines

REQUIRES_CONTENT_TYPE = """
from moorage.kit import http1
read_head = http1.RequestParser._read_head
def strict(parser):
    if b"\\r\\n\\r\\n" in parser._buffer and b"content-type" not in parser._buffer.lower():
        raise http1.HttpError(400, "no Content-Type")
    return read_head(parser)
http1.RequestParser._read_head = strict
"""
REQUIRES_BODY = """
from moorage.kit.driver import CallAnswer, Plugin
handle = Plugin.handle
def strict(plugin, method, path, body):
    return handle(plugin, method, path, body) if body or "Activate" in path else CallAnswer(400, b'{"Err": "EOF"}')
Plugin.handle = strict
"""
CLOSES_CONNECTIONS = """
import dataclasses
from moorage.kit import http1, server
feed = http1.RequestParser.feed
def last(parser, data):
    request = feed(parser, data)
    return request and dataclasses.replace(request, is_last=True)
http1.RequestParser.feed = last
server.response = lambda status, body, is_last: http1.response(status, body, is_last=False)
"""
BUSY = """
import threading, time
from moorage.kit.driver import CallAnswer, Plugin
handle, running = Plugin.handle, threading.Semaphore(20)
def limited(plugin, *call):
    if not running.acquire(blocking=False):
        return CallAnswer(503, b'{"Err": "busy"}')
    time.sleep(0.01)
    try:
        return handle(plugin, *call)
    finally:
        running.release()
Plugin.handle = limited
"""
ONE_CALLER = """
from moorage.kit.server import PluginServer
receive = PluginServer._receive
def blocking(server, connection):
    connection.peer.settimeout(60)
    while True:
        receive(server, connection)
        if connection.parser.is_empty or connection.peer.fileno() < 0:
            return
PluginServer._receive = blocking
"""
IGNORES_SIGTERM = """
from moorage.kit.server import PluginServer
PluginServer.stop = lambda server: None
"""
SILENT_ACTIVATION = """
from moorage.kit.driver import CallAnswer, Plugin
handle = Plugin.handle
def silent(plugin, method, path, body):
    return CallAnswer(200, b'{}') if "Activate" in path else handle(plugin, method, path, body)
Plugin.handle = silent
"""
CREATE_ONCE = """
create = HelloVolume.create
def once(driver, request):
    if any(each.name == request.name for each in driver.table.volumes()):
        raise CallFailed("it exists")
    create(driver, request)
HelloVolume.create = once
"""
ERROR_WITH_200 = """
CallFailed.status = 200
"""
NO_SCOPE = """
HelloVolume.capabilities = lambda driver: ""
"""
FIRST_UNMOUNT = """
def unmount_all(driver, request):
    for user in driver.table.get(request.name).users:
        driver.table.unmount(request.name, user)
HelloVolume.unmount = unmount_all
"""
COUNTER = """
counts = {}
def count(driver, request):
    counts[request.name] = counts.get(request.name, 0) + 1
    return driver.table.mount(request.name, f"{request.id}-{counts[request.name]}")
def uncount(driver, request):
    users = [each for each in driver.table.get(request.name).users if each.startswith(f"{request.id}-")]
    for user in users[-1:]:
        driver.table.unmount(request.name, user)
HelloVolume.mount, HelloVolume.unmount = count, uncount
"""
ANY_USER = """
counted = {}
def count(driver, request):
    counted.setdefault(request.name, set()).add(request.id)
    return driver.table.mount(request.name, "all")
def uncount(driver, request):
    driver.table.get(request.name)
    known = counted.get(request.name, set())
    if known:
        known.discard(request.id) if request.id in known else known.pop()
    if not known:
        driver.table.unmount(request.name, "all")
HelloVolume.mount, HelloVolume.unmount = count, uncount
"""
ELSEWHERE = """
def attach(driver, volume):
    (ROOT.parent / "elsewhere" / volume.name).mkdir(parents=True, exist_ok=True)
    return f"/mnt/elsewhere/{volume.name}"
HelloVolume.attach = attach
HelloVolume.detach = lambda driver, volume, lazy: None
"""
NEEDS_OPTION = """
create = HelloVolume.create
def strict(driver, request):
    if request.opts.pop("host", None) != "here":
        raise CallFailed("'host' option required")
    create(driver, request)
HelloVolume.create = strict
"""
FORGETS = """
HelloVolume.start = lambda driver: None
"""
FORGETS_USERS = """
start = HelloVolume.start
def forgetful(driver):
    import json
    file = ROOT / "volumes.json"
    if file.exists():
        document = json.loads(file.read_text())
        for volume in document["volumes"].values():
            volume["users"] = []
        file.write_text(json.dumps(document))
    start(driver)
HelloVolume.start = forgetful
"""
NO_CAPABILITIES = """
JsonLines.capabilities = lambda driver: {"ReadLogs": True}
"""
STOPS_AT_ONCE = """
import select
from moorage.kit import LogReader
read = LogReader._read_until_closed
def hasty(reader):
    return not select.select([reader._stop_out], [], [], 0.5)[0] and read(reader)
LogReader._read_until_closed = hasty
"""
LAST_PART_ONLY = """
from moorage.kit import EntryJoiner
EntryJoiner.join = lambda joiner, entry: None if entry.is_partial else entry
"""
ONE_CONTAINER = """
start = JsonLines.start_logging
def only_one(driver, request):
    if not driver._readers:
        start(driver, request)
JsonLines.start_logging = only_one
"""
FORGETS_STREAMS = """
JsonLines.start = lambda driver: None
"""
NO_DECISION = """
RuleFile.check_request = lambda driver, request: {"Allow": "yes"}
"""
SMALL_BODIES = """
from moorage.kit import Limits
serve_all = serve
def serve(*drivers, socket):
    serve_all(*drivers, socket=socket, limits=Limits(body_bytes=1 << 20))
"""
ALLOWS_UNREADABLE = """
from moorage.kit.driver import CallAnswer, Plugin
handle = Plugin.handle
def lenient(plugin, method, path, body):
    answer = handle(plugin, method, path, body)
    return CallAnswer(200, b'{"Allow": true}') if answer.status == 400 else answer
Plugin.handle = lenient
"""
PROGRAMS = {
    "json-lines": "json_lines.py",
    "rule-file": "rule_file.py",
}
OTHER_VARIANTS = {
    "L01": ("json-lines", NO_CAPABILITIES),
    "L03": ("json-lines", STOPS_AT_ONCE),
    "L04": ("json-lines", LAST_PART_ONLY),
    "L05": ("json-lines", ONE_CONTAINER),
    "L08": ("json-lines", FORGETS_STREAMS),
    "A01": ("rule-file", NO_DECISION),
    "A02": ("rule-file", SMALL_BODIES),
    "A03": ("rule-file", ALLOWS_UNREADABLE),
}
VARIANTS = {
    "C01": SILENT_ACTIVATION,
    "C02": REQUIRES_CONTENT_TYPE,
    "C03": REQUIRES_BODY,
    "C06": CLOSES_CONNECTIONS,
    "C07": BUSY,
    "C08": ONE_CALLER,
    "C09": IGNORES_SIGTERM,
    "V02": CREATE_ONCE,
    "V04": ERROR_WITH_200,
    "V05": NO_SCOPE,
    "V06": FIRST_UNMOUNT,
    "V07": COUNTER,
    "V08": ANY_USER,
    "V09": ELSEWHERE,
    "V10": FORGETS_USERS,
    "V11": FORGETS,
}
CONSEQUENCES = {
    "C02": {"C01", "C03", "C04", "C05", "C06", "C07", "C08", *(f"V{number:02}" for number in range(1, 12))},
    "C03": {"V01", "V02", "V05", "V10", "V11"},  # they list volumes, or query the scope
    "L01": {"L02", "L03", "L04", "L06"},  # they read the log back if the driver can
    "L03": {"L02", "L05", "L06", "L08"},
    "L05": {"L06", "L07", "L08"},
    "A01": {"A02"},
    "A03": {"C04", "C05"},
    "V06": {"V08", "V10"},
    "V08": {"V10"},
    "V09": {"V10"},
    "V11": {"V10"},
}
"""What must fail, too, because the check uses the same call."""


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLES / "hello-volume", tmp_path / "variant", symlinks=True)
    return tmp_path / "variant"


def plant(directory: Path, source: str) -> None:
    """Put this before the last lines of hello-volume's program."""
    program = directory / "rootfs/plugin/hello_volume.py"
    before, main, after = program.read_text().partition('if __name__ == "__main__":')
    program.write_text(f"{before}{source}\n{main}{after}")


def test_case_305_a_driver_that_requires_options_is_tested_with_them(house: EngineProcess, variant: Path) -> None:
    """As most drivers of remote file systems do: sshfs (sshcmd), bindfs (sourcePath), nfs (device)."""
    plant(variant, NEEDS_OPTION)
    results = check(house, variant, host="here")
    assert failures(results) == {}
    skipped = {each.id: each.text for each in results if each.outcome == "skipped"}
    assert skipped == {"V03": "options were given, so that it may require them"}


@pytest.mark.extensive
@pytest.mark.parametrize("id", VARIANTS)
def test_a_planted_bug_is_found_by_the_check_that_is_made_for_it(house: EngineProcess, variant: Path, id: str) -> None:
    plant(variant, VARIANTS[id])
    found = failures(check(house, variant))
    assert id in found
    assert set(found) - {id} <= CONSEQUENCES.get(id, set()), found


@pytest.mark.extensive
@pytest.mark.parametrize("id", OTHER_VARIANTS)
def test_a_bug_of_a_log_or_authorization_driver_is_found(house: EngineProcess, tmp_path: Path, id: str) -> None:
    example, source = OTHER_VARIANTS[id]
    shutil.copytree(EXAMPLES / example, tmp_path / "it", symlinks=True)
    copy_kit(tmp_path / "it")
    program = tmp_path / "it/rootfs/plugin" / PROGRAMS[example]
    before, main, after = program.read_text().partition('if __name__ == "__main__":')
    program.write_text(f"{before}{source}\n{main}{after}")
    found = failures(check(house, tmp_path / "it"))
    assert id in found
    assert set(found) - {id} <= CONSEQUENCES.get(id, set()), found


# ---- plugins with the wire behaviour of Go's helpers

TYPES = {
    "volume": "docker.volumedriver/1.0",
    "authz": "docker.authz/1.0",
    "ipam": "docker.ipamdriver/1.0",
    "network": "docker.networkdriver/1.0",
}


@pytest.mark.parametrize("kind", go_shapes.KINDS)
def test_plugins_as_gos_helpers_make_them_pass(house: EngineProcess, variant: Path, kind: str) -> None:
    shutil.copy(go_shapes.__file__, variant / "rootfs/plugin/go_shapes.py")
    config = json.loads((variant / "config.json").read_text())
    config["entrypoint"] = [
        "/usr/bin/python3",
        "/plugin/go_shapes.py",
        kind,
        "/run/docker/plugins/go.sock",
        "/mnt/volumes",
    ]
    config["interface"] = {"types": [TYPES[kind]], "socket": "go.sock"}
    (variant / "config.json").write_text(json.dumps(config))
    results = check(house, variant)
    assert failures(results) == {}
    assert not [each for each in results if each.outcome == "skipped"]


# ---- the command


def test_a_socket_is_tested_without_kills(tmp_path: Path) -> None:
    program = [sys.executable, go_shapes.__file__, "ipam", str(tmp_path / "s"), str(tmp_path)]
    with subprocess.Popen(program) as process:
        try:
            while not (tmp_path / "s").exists():
                assert process.poll() is None
            done = moorage("--json", "test", str(tmp_path / "s"))
        finally:
            process.terminate()
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert {each["Id"] for each in results if each["Outcome"] == "skipped"} == {"C09"}


def test_a_failure_is_exit_status_1_and_in_the_report(tmp_path: Path) -> None:
    source = "import socketserver, sys\n" + (
        "class H(socketserver.StreamRequestHandler):\n"
        "    def handle(self):\n"
        "        self.rfile.readline()\n"
        "        self.wfile.write(b'HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}')\n"
        "socketserver.ThreadingUnixStreamServer(sys.argv[1], H).serve_forever()\n"
    )
    with subprocess.Popen([sys.executable, "-c", source, str(tmp_path / "s")]) as process:
        try:
            while not (tmp_path / "s").exists():
                assert process.poll() is None
            done = moorage("test", str(tmp_path / "s"), "--junitxml", str(tmp_path / "x"), "--timeout", "5")
        finally:
            process.terminate()
    assert done.returncode == 1
    assert "FAIL  C01" in done.stdout
    (suite,) = ElementTree.parse(tmp_path / "x").getroot()
    assert suite.get("failures") == "1"
    message = suite[0][0].get("message") or ""
    assert "Implements" in message


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("/no/such/socket",), "it is not a socket"),
        ((str(EXAMPLES / "hello-volume"), "NONSENSE=1"), "NONSENSE"),
        ((str(EXAMPLES),), "config.json"),
    ],
)
def test_what_cannot_be_tested_is_refused_and_nothing_is_left(
    machine: Machine, words: tuple[str, ...], said: str
) -> None:
    done = machine.moorage("test", *words)
    assert done.returncode == 1
    assert said in done.stderr
    machine.assert_nothing_left()


def test_what_a_killed_command_has_left_is_removed_by_the_next(machine: Machine) -> None:
    command = machine.command(sys.executable, "-m", "moorage", "test", EXAMPLES / "hello-volume")
    with subprocess.Popen(command, env=environment(None), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
    assert list(machine.inside("/run").glob("moorage-test-*"))
    assert machine.processes("containerd")
    done = machine.moorage("test", EXAMPLES / "hello-volume")
    assert done.returncode == 0, done.stderr
    machine.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_leaves_nothing(machine: Machine, number: signal.Signals) -> None:
    command = machine.command(sys.executable, "-m", "moorage", "test", EXAMPLES / "hello-volume")
    with subprocess.Popen(command, env=environment(None), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(TIMEOUT_SECONDS) == 128 + number
    machine.assert_nothing_left()
