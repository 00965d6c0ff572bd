"""An engine of another machine through a real sshd, and contexts that name it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "sshd", "ssh")]


@dataclass(frozen=True)
class Machine:
    """The other machine: an sshd on a loopback port, and our ssh that trusts it."""

    port: int
    folder: Path

    def environment(self) -> dict[str, str]:
        home = {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder / "config")}
        path = f"{self.folder / 'client'}:{os.environ['PATH']}"
        return {**os.environ, **home, "PATH": path, "MOORAGE_HOST": "", "MOORAGE_CONTEXT": ""}

    def run(self, *words: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "moorage", *words]
        return subprocess.run(
            command, input=given, env=self.environment(), capture_output=True, timeout=limit(60), check=False
        )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        mounts = [
            {"name": each.strip("/"), "source": each, "destination": each, "type": "bind", "options": ["rbind", "ro"]}
            for each in ("/usr", "/bin", "/lib", "/lib64")
        ]
        made.create("far", config(mounts=mounts))
        made.enable("far")
        yield made
        made.remove("far", force=True)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("ssh")
    folder.chmod(0o755)
    for name in ("client", "server"):
        (folder / name).mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "server/moorage").write_text(f'#!/bin/sh\nexec {sys.executable} -m moorage "$@"\n')
    (folder / "client/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    for program in ("server/moorage", "client/ssh"):
        (folder / program).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"StrictModes no\nPermitRootLogin yes\nUsePAM no\nPidFile none\n"
        f"SetEnv PATH={folder}/server:{os.environ['PATH']} PYTHONPATH={os.environ.get('PYTHONPATH', '')}\n"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user\nUserKnownHostsFile {folder}/known\nStrictHostKeyChecking accept-new\n"
        "BatchMode yes\nLogLevel ERROR\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        command = ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")]
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: b"listening" in (folder / "log").read_bytes(), "sshd listens")
        yield Machine(port, folder)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(limit(30))


def test_h05_host_may_be_on_another_machine(machine: Machine, house: EngineProcess) -> None:
    host = f"ssh://root@127.0.0.1:{machine.port}{house.socket}"
    done = machine.run("--host", host, "ls", "--format", "{{.Name}} {{.State}}")
    assert (done.returncode, done.stdout) == (0, b"far:latest ready\n"), done.stderr
    done = machine.run("--host", host, "exec", "-i", "far", "cat", given=b"x" * 300_000)
    assert (done.returncode, len(done.stdout)) == (0, 300_000), done.stderr
    assert machine.run("--host", host, "exec", "far", "sh", "-c", "exit 9").returncode == 9


def test_h05_a_context_names_it(machine: Machine, house: EngineProcess) -> None:
    host = f"ssh://root@127.0.0.1:{machine.port}{house.socket}"
    assert machine.run("context", "create", "far", "--host", host, "--description", "over there").returncode == 0
    assert machine.run("--context", "far", "ls", "-q").stdout.decode().strip() == house.inspect("far")["Id"][:12]
    assert machine.run("context", "use", "far").returncode == 0
    assert machine.run("context", "show").stdout == b"far\n"
    assert machine.run("inspect", "far", "--format", "{{.Name}}").stdout == b"far:latest\n"
    assert b"far *" in machine.run("context", "ls").stdout
    assert machine.run("context", "rm", "far").returncode == 1
    assert machine.run("context", "create", "far", "--host", host).returncode == 1
    assert machine.run("context", "rm", "-f", "far").stdout == b"far\n"
    assert machine.run("context", "ls", "-q").stdout == b"default\n"
    assert machine.run("--context", "far", "ls").returncode == 1


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("ssh://root@127.0.0.1:1", b"ssh cannot connect"),
        ("ssh://-oProxyCommand=true", b"it must be ssh://"),
        ("ssh://a b", b"it must be ssh://"),
        ("ssh://", b"it must be ssh://"),
        ("ssh://root@127.0.0.1/$(id)", b"it must be ssh://"),
        ("tcp://127.0.0.1:1", b"it must be unix:// and an absolute path, or ssh://"),
    ],
)
def test_h05_what_cannot_be_reached_says_the_cause(machine: Machine, host: str, cause: bytes) -> None:
    done = machine.run("--host", host, "ls")
    assert (done.returncode, done.stdout) == (1, b"")
    assert cause in done.stderr


def test_h05_an_engine_that_does_not_run_there_is_reported(machine: Machine) -> None:
    done = machine.run("--host", f"ssh://root@127.0.0.1:{machine.port}/run/absent.sock", "ls")
    assert done.returncode == 1
    assert b"cannot reach moorage at /run/absent.sock" in done.stderr
