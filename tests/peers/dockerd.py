"""A real dockerd to compare with: of its own directories, without network, gone with all its traces at the end.

Talks to it over its API, so that no docker command is needed. One trace it makes whatever its options say is
``/run/docker/plugins/<id>``; that directory stays.
"""

import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from support import leftovers
from support.engines import Refused as Refused
from support.engines import UnixConnection
from support.limits import limit

START_SECONDS = limit(60.0)
STOP_SECONDS = limit(30.0)
SOCKETS = Path("/run/docker/plugins")
"""Where dockerd puts the socket directories of its plugins, with any exec root."""

PROGRAM = "MOORAGE_DOCKERD"
"""The variable with another program, for example that of another version of Debian."""


class Dockerd:
    """A running dockerd. ``stop`` must be called."""

    def __init__(
        self, directory: Path, *, containerd: str = "", prefix: Sequence[str] = (), options: Sequence[str] = ()
    ) -> None:
        """``containerd`` is the address of one to share; empty for one of its own. ``prefix`` is put before its
        command.
        """
        self.directory = directory
        self.data = directory / "data"
        self.state = directory / "exec"
        self.address = directory / "docker.sock"
        self.log = directory / "log"
        SOCKETS.mkdir(parents=True, exist_ok=True)  # and left there: see ConsumerMachine
        self._command = [
            *prefix,
            os.environ.get(PROGRAM, "dockerd"),
            "--iptables=false",
            "--bridge=none",
            f"--data-root={self.data}",
            f"--exec-root={self.state}",
            f"--pidfile={directory / 'pid'}",
            f"--host=unix://{self.address}",
            *([f"--containerd={containerd}"] if containerd else []),
            *options,
        ]
        self.process = self._spawn()

    def _spawn(self, *options: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "NOTIFY_"))}
        command = [*self._command, *options]
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def start_again(self, *options: str) -> None:
        """Start it on what an earlier one left; returns at once."""
        assert self.process.poll() is not None
        self.process = self._spawn(*options)

    def wait_until_serving(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.request("GET", "/_ping")
                return
            except (OSError, http.client.HTTPException):
                assert self.process.poll() is None, f"dockerd ended: {self.log.read_text()[-2000:]}"
                assert time.monotonic() < deadline, f"dockerd does not serve: {self.log.read_text()[-2000:]}"
            time.sleep(0.05)

    def request(self, verb: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
        """One call. Raises: Refused."""
        connection = UnixConnection(self.address, START_SECONDS)
        try:
            connection.request(verb, path, body, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise Refused(answer.status, str(json.loads(text)["message"]))
        return text

    def version(self) -> str:
        return str(json.loads(self.request("GET", "/version"))["Version"])

    def create_plugin(self, name: str, config: bytes, rootfs: Path) -> None:
        package = io.BytesIO()
        with tarfile.open(fileobj=package, mode="w") as tar:
            member = tarfile.TarInfo("config.json")
            member.size = len(config)
            tar.addfile(member, io.BytesIO(config))
            tar.add(rootfs, "rootfs")
        self.request("POST", f"/plugins/create?name={quote(name)}", package.getvalue(), "application/x-tar")

    def set_plugin(self, name: str, assignments: Sequence[str]) -> None:
        self.request("POST", f"/plugins/{name}/set", json.dumps(list(assignments)).encode())

    def enable_plugin(self, name: str) -> None:
        self.request("POST", f"/plugins/{name}/enable?timeout=30")

    def disable_plugin(self, name: str) -> None:
        self.request("POST", f"/plugins/{name}/disable")

    def inspect_plugin(self, name: str) -> dict[str, Any]:
        answer = json.loads(self.request("GET", f"/plugins/{name}/json"))
        assert isinstance(answer, dict)
        return answer

    def remove_plugin(self, name: str) -> None:
        self.request("DELETE", f"/plugins/{name}?force=1")

    def spec_of(self, id: str) -> dict[str, Any]:
        """The OCI spec that a running plugin's runc was given."""
        (path,) = self.state.glob(f"**/{id}/config.json")
        spec = json.loads(path.read_bytes())
        assert isinstance(spec, dict)
        return spec

    def stop(self) -> None:
        """End dockerd, its containerd and its plugins, and remove their leftovers."""
        children = self._descendants()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._end(children)
        for point in reversed(leftovers.mounts_below(self.directory)):
            subprocess.run(["umount", "--lazy", point], check=True)

    def _descendants(self) -> list[int]:
        """Our dockerd's containerd and whatever it started: they carry our directory in their command line."""
        mark = os.fsencode(self.directory)
        numbers = [int(each) for each in os.listdir("/proc") if each.isdigit()]
        return [
            each
            for each in numbers
            if each not in (os.getpid(), self.process.pid)
            and any(mark in word for word in leftovers.command_line(each))
        ]

    def _end(self, pids: Sequence[int]) -> None:
        deadline = time.monotonic() + STOP_SECONDS
        for pid in pids:
            while leftovers.is_alive(pid):
                if time.monotonic() > deadline - STOP_SECONDS / 2:
                    os.kill(pid, signal.SIGKILL)
                assert time.monotonic() < deadline, f"process {pid} of dockerd does not end"
                time.sleep(0.02)


@contextmanager
def running_dockerd(*, containerd: str = "") -> Iterator[Dockerd]:
    """One in a directory of its own, gone with all its traces at the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="m-dockerd-", dir="/var/tmp"))
    peer = Dockerd(directory, containerd=containerd)
    try:
        peer.wait_until_serving()
        yield peer
    finally:
        peer.stop()
        assert not leftovers.mounts_below(directory)
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """A dockerd of this session's own. What uses it is marked ``needs("dockerd")``."""
    with running_dockerd() as peer:
        yield peer
