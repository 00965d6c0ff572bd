"""An exit that containerd does not report: queried from its shim, as 1.7 and later forget it, and the kernel's log."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from moorage import errors
from moorage.containerd._proto import moorage_process_pb2, moorage_shim_pb2
from moorage.containerd.containers import BundledContainers
from moorage.containerd.shims.exits import find_recorded_exit, query_exit
from moorage.containerd.shims.processes import find_shims
from moorage.containerd.stdio import TaskFifos
from moorage.containerd.types import Status
from moorage.host.cgroups import find_groups
from support import leftovers
from support.conditions import eventually
from support.foreground import wait_until
from support.kills import kill_containerd
from support.workspace import Workspace

pytestmark = pytest.mark.anyio

ENDS_BY_TERM = "trap 'exit 6' TERM; echo ready; while :; do sleep 0.02; done"


class Keep:
    """Keeps the streams; nothing is read by itself."""

    stdio: TaskFifos

    async def __call__(self, stdio: TaskFifos) -> "Keep":
        self.stdio = stdio
        return self

    async def wait(self) -> None:
        """Nothing is copied."""


@asynccontextmanager
async def started(workspace: Workspace, containers: BundledContainers) -> AsyncIterator[tuple[int, Path]]:
    """A shell that exits with 6 on a signal; its pid, and the directory of its container."""
    keep = Keep()
    await containers.create("a", workspace.shell("a", ENDS_BY_TERM), workspace.runtime)
    pid = await containers.start("a", "", False, keep)
    assert await keep.stdio.stdout.read() == b"ready\n"
    try:
        yield pid, workspace.root / "bundles" / workspace.namespace / "a"
        await containers.delete("a")
    finally:
        keep.stdio.close()


async def test_e43_what_ends_while_containerd_is_unavailable_is_noted_and_reported_by_the_deletion(
    workspace: Workspace,
) -> None:
    async with workspace.containers() as containers, started(workspace, containers) as (pid, directory):
        await kill_containerd(workspace.containerd)
        with pytest.raises(errors.Unavailable):
            await containers.status("a")
        assert find_recorded_exit(directory) is None, "it runs"
        os.kill(pid, signal.SIGTERM)
        await eventually(lambda: not leftovers.is_alive(pid))
        with pytest.raises(errors.Unavailable):
            await containers.status("a")
        noted = find_recorded_exit(directory)
        assert noted is not None
        assert noted.code == 6
        await workspace.containerd.ensure()
        assert await containers.delete_task("a") == (6, noted.exited_at)


async def test_a_shim_whose_streams_are_elsewhere_is_ignored(workspace: Workspace) -> None:
    async with workspace.containers() as containers, started(workspace, containers) as (pid, directory):
        os.kill(pid, signal.SIGTERM)
        await eventually(lambda: not leftovers.is_alive(pid))
        assert query_exit(workspace.namespace, "a", directory / "other") is None
        assert query_exit(workspace.namespace, "b", directory) is None
        exit = query_exit(workspace.namespace, "a", directory)
        assert exit is not None
        assert await containers.delete_task("a") == (exit.code, exit.exited_at)


@contextmanager
def odd_shim(directory: Path, answer: bytes, files: dict[str, str] | None = None) -> Iterator[list[bytes]]:
    """A process that poses as a shim of container a, in namespace odd, and gives this answer; its requests."""
    requested: list[bytes] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "s"))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                requested.append(connection.recv(4096))
                connection.sendall(answer)

    for name, text in (files or {"address": f"unix://{directory}/s"}).items():
        (directory / name).write_text(text)
    program = directory / "containerd-shim-odd-v2"  # a shim is known by its program's name, not by how it was called
    shutil.copy("/bin/bash", program)
    words = [str(program), "-c", "read line", "-namespace", "odd", "-id", "a"]
    thread = threading.Thread(target=serve)
    thread.start()
    with subprocess.Popen(words, stdin=subprocess.PIPE, cwd=directory) as process:
        try:
            wait_until(lambda: find_shims("odd", "a"), "its name")
            yield requested
        finally:
            process.kill()
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()


def framed(response: moorage_shim_pb2.Response, kind: int = 2) -> bytes:
    data = response.SerializeToString()
    return struct.pack(">IIBB", len(data), 1, kind, 0) + data


def said(directory: Path, **fields: object) -> moorage_shim_pb2.Response:
    given = {"status": moorage_process_pb2.STOPPED, "stdout": f"{directory}/stdout", "exit_status": 6, **fields}
    return moorage_shim_pb2.Response(payload=moorage_shim_pb2.StateResponse(**given).SerializeToString())  # type: ignore[arg-type]


def test_a_newer_shim_says_where_it_listens_and_what_it_speaks(tmp_path: Path) -> None:
    bootstrap = json.dumps({"version": 3, "address": f"unix://{tmp_path}/s", "protocol": "ttrpc"})
    with odd_shim(tmp_path, framed(said(tmp_path)), {"bootstrap.json": bootstrap}) as requested:
        exit = query_exit("odd", "a", tmp_path)
    assert exit is not None
    assert (exit.code, exit.exited_at) == (6, None)
    request = moorage_shim_pb2.Request.FromString(requested[0][10:])
    assert (request.service, request.method) == ("containerd.task.v3.Task", "State")
    assert moorage_shim_pb2.StateRequest.FromString(request.payload).id == "a"


@pytest.mark.parametrize("wrong", ["nothing", "garbage", "failure", "runs", "dead but not noticed", "endless", "kind"])
def test_a_shim_that_does_not_report_is_no_exit(tmp_path: Path, wrong: str) -> None:
    failure = moorage_shim_pb2.Response(status=moorage_shim_pb2.Failure(code=5, message="not found"))
    answer = {
        "nothing": b"",
        "garbage": struct.pack(">IIBB", 4, 1, 2, 0) + b"\xff\xff\xff\xff",
        "failure": framed(failure),
        "runs": framed(said(tmp_path, status=moorage_process_pb2.RUNNING, pid=os.getpid())),
        "dead but not noticed": framed(said(tmp_path, status=moorage_process_pb2.RUNNING, pid=2**22 + 1)),
        "endless": struct.pack(">IIBB", 2**31, 1, 2, 0),
        "kind": framed(said(tmp_path), kind=1),
    }[wrong]
    with odd_shim(tmp_path, answer) as requested:
        assert query_exit("odd", "a", tmp_path) is None
    assert requested


@pytest.mark.parametrize(
    "text", ["", "{}", '{"protocol": "grpc", "version": 3, "address": "unix:///x"}', "[]", "nonsense"]
)
def test_a_shim_that_cannot_be_queried_is_no_exit(tmp_path: Path, text: str) -> None:
    with odd_shim(tmp_path, b"", {"bootstrap.json": text}):
        assert query_exit("odd", "a", tmp_path) is None


LIMIT = 32 << 20
HUNGRY = "exec dd if=/dev/zero of=/dev/null bs=200M count=1"


@pytest.mark.parametrize(("text", "oom"), [(HUNGRY, True), ("sleep 1000", False)])
async def test_case_099_an_oom_kill_is_known_when_systemd_has_removed_the_counter(
    workspace: Workspace, text: str, oom: bool
) -> None:
    """The group has a scope's name, and the test removes it as systemd does at the exit of a scope's last process."""
    group = f"{workspace.cgroup('a')}.scope"
    spec = workspace.shell("a", text)
    spec["linux"] |= {"cgroupsPath": group, "resources": {"memory": {"limit": LIMIT, "swap": LIMIT}}}
    keep = Keep()
    async with workspace.containers() as containers:
        await containers.create("a", spec, workspace.runtime)
        pid = await containers.start("a", "", False, keep)
        if not oom:
            os.kill(pid, signal.SIGKILL)

        async def is_stopped() -> bool:
            return await containers.status("a") is Status.STOPPED

        try:
            await eventually(is_stopped)
            for directory in set(find_groups(group).values()):
                if directory.is_dir():
                    directory.rmdir()
            assert await containers.oom_killed("a") is oom
            assert (await containers.delete_task("a"))[0] == 128 + signal.SIGKILL
            await containers.delete("a")
        finally:
            keep.stdio.close()
