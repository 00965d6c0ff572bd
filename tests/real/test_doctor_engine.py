"""Row L03: what `moorage doctor` finds of an engine that does not work, and of a dockerd beside it."""

import http.server
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage.client import MoorageClient
from moorage.doctor.check import CheckTarget, run_checks
from moorage.doctor.dockerd import DOCKERD_CHECKS, compare_dockerd, read_dockerd
from moorage.doctor.engine import ENGINE_CHECKS
from moorage.doctor.findings import Finding, Verdict
from moorage.engine.store import Store
from support.engines import EngineProcess
from support.foreground import wait_until
from support.kills import stop
from support.limits import limit

pytestmark = pytest.mark.real

TIMEOUT = limit(30.0)


def examine(data: Path, path: Path, within: float = TIMEOUT) -> dict[str, Finding]:
    """Each finding by its subject."""
    target = CheckTarget(data, data, path, MoorageClient(str(path), within).info)
    return {each.subject: each for each in run_checks((*ENGINE_CHECKS, *DOCKERD_CHECKS), target)}


def shown(finding: Finding) -> tuple[str, str, str]:
    return finding.verdict.value, finding.text, finding.advice


def test_l03_an_engine_without_containerd_then_killed_then_not_there(tmp_path: Path) -> None:
    engine = EngineProcess(tmp_path, containerd=str(tmp_path / "no.sock"))
    engine.start(wait=False)
    try:
        engine.wait_until(lambda: "no.sock" in engine.info()["Moorage"]["Problem"], "it says what it lacks")
        found = examine(engine.root, engine.socket)["engine"]
        assert found.verdict is Verdict.WRONG
        assert found.text.startswith("answers, but cannot run plugins: cannot ")
        assert "systemctl status containerd" in found.advice

        assert engine.child is not None
        stop(engine.child.pid)
        found = examine(engine.root, engine.socket, within=0.2)["engine"]
        engine.child.send_signal(signal.SIGCONT)
        assert found.verdict is Verdict.WRONG
        assert f"process {engine.child.pid} works on {engine.root} but does not answer on" in found.text
        assert "journalctl -u moorage" in found.advice

        moved = engine.socket.rename(engine.socket.with_name("other.sock"))
        found = examine(engine.root, engine.socket)["engine"]
        assert (
            found.text
            == f"process {engine.child.pid} works on {engine.root}, but there is no socket at {engine.socket}"
        )
        assert "--host" in found.advice
        moved.rename(engine.socket)

        engine.end(signal.SIGKILL)
        found = examine(engine.root, engine.socket)["engine"]
        assert (found.verdict, found.text) == (
            Verdict.WRONG,
            f"does not run, and has left {engine.socket}: it was killed",
        )
        assert "moorage serve" in found.advice
        engine.socket.unlink()
        found = examine(engine.root, engine.socket)["engine"]
        assert (found.verdict, found.text) == (Verdict.WARNING, f"does not run; its plugins are in {engine.root}")
        assert "moorage serve" in found.advice
    finally:
        if engine.child is not None:
            engine.child.kill()
            engine.child.wait()
        shutil.rmtree(engine.exec_root)


def test_l03_the_users_of_the_socket_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    found = examine(tmp_path, path)
    assert [shown(found[each])[::2] for each in ("engine", "engine socket")] == [("ok", "")] * 2
    path.touch()
    assert shown(examine(tmp_path, path)["engine socket"])[:2] == ("wrong", f"{path} is not a socket")
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o660)
        os.chown(path, 0, 7)
        assert shown(examine(tmp_path, path)["engine socket"]) == ("ok", f"root and group lp may use {path}", "")
        path.chmod(0o666)
        verdict, text, advice = shown(examine(tmp_path, path)["engine socket"])
        assert (verdict, text) == ("wrong", f"all users may use {path}, which is as good as root")
        assert f"chmod 660 {path}" in advice
        path.chmod(0o600)
        os.chown(path, 65534, 0)
        assert "user nobody may use" in examine(tmp_path, path)["engine socket"].text


@contextmanager
def unprivileged() -> Iterator[None]:
    """This process with no right of root's, for the length of the block."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.mark.parametrize(
    ("group", "words"), [(0, "start the engine with --group NAME"), (7, "sudo usermod -aG lp nobody")]
)
def test_l03_a_user_without_access_to_the_engine_gets_advice(tmp_path: Path, group: int, words: str) -> None:
    path = Path("/run") / f"m-doctor-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            path.chmod(0o660)
            os.chown(path, 0, group)
            listener.listen()
            with unprivileged():
                found = examine(tmp_path, path)["engine"]
        finally:
            path.unlink()
    assert (found.verdict, found.text) == (Verdict.WRONG, f"user nobody may not use {path}")
    assert words in found.advice


@contextmanager
def a_dockerd(directory: Path, *options: str) -> Iterator[int]:
    """A program with its name and arguments: a real one is checked in tests/peers/test_dockerd_namespace.py."""
    shutil.copy("/bin/sh", directory / "dockerd")
    command: list[str | Path] = [directory / "dockerd", "-c", "read line", "dockerd", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as daemon:
        words = Path(f"/proc/{daemon.pid}/cmdline")  # there a moment after its name
        wait_until(lambda: words.read_bytes().startswith(os.fsencode(directory / "dockerd")), "its name and words")
        yield daemon.pid


@pytest.mark.parametrize(
    ("containerd", "options", "verdict"),
    [
        ("private", ["--containerd", "{0}/c.sock"], Verdict.OK),
        ("{0}/c.sock", ["--containerd={0}/other.sock"], Verdict.OK),
        ("{0}/c.sock", ["--containerd={0}/c.sock"], Verdict.WRONG),
        ("unix://{0}/c.sock", ["--containerd", "{0}/link.sock"], Verdict.WRONG),
        ("{0}/c.sock", ["--config-file={0}/daemon.json"], Verdict.WRONG),
        ("{0}/c.sock", ["--containerd={0}/c.sock", "--containerd-plugins-namespace=theirs"], Verdict.OK),
        ("{0}/c.sock", ["--containerd={0}/c.sock", "--containerd-namespace=plugins.moby"], Verdict.WRONG),
    ],
)
def test_l03_m11_a_dockerd_is_wrong_where_it_shares_containerd_and_namespace(
    tmp_path: Path, containerd: str, options: list[str], verdict: Verdict
) -> None:
    (tmp_path / "c.sock").touch()
    (tmp_path / "link.sock").symlink_to("c.sock")
    (tmp_path / "daemon.json").write_text(f'{{"containerd": "{tmp_path}/c.sock"}}')
    Store(tmp_path).settle(containerd.format(tmp_path), "plugins.moby")
    with a_dockerd(tmp_path, *(each.format(tmp_path) for each in options)) as pid:
        seen = compare_dockerd(read_dockerd(pid), Store(tmp_path).find_identity())
        worst = examine(tmp_path, tmp_path / "m.sock")["dockerd"]  # others may run here
    assert worst.verdict is verdict or verdict is Verdict.OK
    assert (seen.subject, seen.verdict, bool(seen.advice)) == ("dockerd", verdict, verdict is Verdict.WRONG)


def test_l03_another_server_at_the_socket_is_called_one(tmp_path: Path) -> None:
    """A dockerd, or anything else that listens there: nothing was killed, and no start would help."""
    path = tmp_path / "moorage.sock"
    with socketserver.UnixStreamServer(str(path), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            found = examine(tmp_path / "data", path)["engine"]
        finally:
            server.shutdown()
            thread.join()
    assert found.verdict is Verdict.WRONG
    assert found.text.startswith(f"does not run; another program answers on {path}: cannot understand the answer")
    assert "--host or MOORAGE_HOST" in found.advice


class Foreign(http.server.BaseHTTPRequestHandler):
    """Answers as dockerd does: with an object that has nothing of Moorage."""

    def do_GET(self) -> None:
        data = b'{"ID":"x","Containers":0,"ServerVersion":"27.0.1"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""
