"""The four targets: Moorage's engine, a dockerd, `ctr` on the engine's containerd, and runc alone."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers.dockerd import SOCKETS, Dockerd
from support import leftovers
from support.engines import EngineProcess, UnixConnection, actor, config

__all__ = ("LIST_SECONDS", "Ctr", "Docker", "Moorage", "Runc", "accepts", "request_output", "until")

NAMESPACE = "moorage-bench"
CGROUP_PARENT = f"moorage-bench-{os.getpid()}"
TIMEOUT = 60.0
_POLL_SECONDS = 0.001
_CALL_SECONDS = re.compile(r'^moorage_containerd_rpc_seconds_sum\{method="([^"]+)"\} (\S+)$', re.MULTILINE)
LIST_SECONDS = 0.02
"""Between two lists of all plugins: a list every millisecond would take a processor from what is measured."""


def until(condition: Callable[[], Any], what: str, *, interval: float = _POLL_SECONDS) -> None:
    """Wait until it is true; checked every ``interval`` seconds, which is to be long where a check is costly."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"waited {TIMEOUT:g} s for nothing: {what}"
        time.sleep(interval)


def accepts(path: Path) -> bool:
    """Whether a unix socket accepts a connection now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0


def request_output(path: Path, count: int, piece: int) -> float:
    """Let the actor that listens here write so many bytes; MB/s by its own clock."""
    connection = UnixConnection(path, TIMEOUT)
    try:
        connection.request("POST", f"/write/{count}/{piece}")
        return count / (int(connection.getresponse().read()) / 1e9) / 1e6
    finally:
        connection.close()


class Moorage(EngineProcess):
    """Our engine, started as users start it."""

    program = str(Path(sys.executable).with_name("moorage"))
    serving: tuple[str, ...] = ()
    """Further options of serve."""

    @property
    def environment(self) -> dict[str, str]:
        """Moorage, with compiled modules as every installation has them, wherever this one may keep none."""
        made = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {
            **made,
            "PYTHONPYCACHEPREFIX": str(self.root.parent / "compiled"),
            "MOORAGE_HOST": f"unix://{self.socket}",
        }

    def _popen(self, verb: str) -> subprocess.Popen[bytes]:
        command = [self.program, verb, "--root", str(self.root), "--exec-root", str(self.exec_root)]
        command += self.serving if verb == "serve" else ()
        with self.log.open("ab") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=self.environment)

    @property
    def containerd_address(self) -> str:
        """Where its containerd listens."""
        return str(self.exec_root / "containerd/c.sock")

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    def containerd_pid(self) -> int:
        return int((self.exec_root / "containerd/pid").read_text())

    def shims(self) -> list[int]:
        mark = os.fsencode(self.containerd_address)
        return [pid for pid in leftovers.shims(self.namespace) if mark in leftovers.command_line(pid)]

    def answers(self) -> bool:
        """Whether the API answers now."""
        try:
            return self.request("GET", "/_ping")[0] == 200
        except OSError:
            return False

    def socket_of(self, name: str) -> Path:
        return self.exec_root / "p" / str(self.inspect(name)["Id"])[:12] / "s/plugin.sock"

    def plugin_pid(self, name: str) -> int:
        return int(self.more(name)["Pid"])

    def set_standby(self, name: str, standby: bool) -> None:
        """Whether the next run of a plugin is prepared."""
        self.request_own("PUT", name, "policy", {"standby": standby})

    def call_seconds(self) -> dict[str, float]:
        """Seconds that each call to containerd has taken so far, all together, by method."""
        _, text = self.request("GET", "/moorage/v1/metrics")
        return {method: float(seconds) for method, seconds in _CALL_SECONDS.findall(text.decode())}

    def all_ready(self, count: int) -> bool:
        """Whether the API shows so many plugins ready."""
        try:
            return bool(sum(each["Moorage"]["State"] == "ready" for each in self.plugins()) == count)
        except OSError:
            return False

    def spec_of(self, name: str) -> dict[str, Any]:
        """The spec that the plugin runs by."""
        id = self.inspect(name)["Id"]
        (path,) = (self.exec_root / "containerd").glob(f"s/io.containerd.runtime.v2.task/*/{id}*/config.json")
        spec = json.loads(path.read_bytes())
        assert isinstance(spec, dict)
        return spec

    def ls(self) -> None:
        subprocess.run([self.program, "ls"], env=self.environment, check=True, stdout=subprocess.DEVNULL)


class Docker(Dockerd):
    """A dockerd with plugins of the same config."""

    def __init__(self, directory: Path) -> None:
        self._sockets: set[Path] = set()
        super().__init__(directory)

    @property
    def pid(self) -> int:
        return self.process.pid

    def create(self, name: str, rootfs: Path) -> None:
        # dockerd refuses a second plugin whose config or whose layer is the same to the byte
        (rootfs / "name").write_text(name)
        self.create_plugin(name, json.dumps(config(description=name)).encode(), rootfs)

    def answers(self) -> bool:
        try:
            return self.request("GET", "/_ping") == b"OK"
        except OSError:
            return False

    def socket_of(self, name: str) -> Path:
        directory = SOCKETS / str(self.inspect_plugin(name)["Id"])
        self._sockets.add(directory)
        return directory / "plugin.sock"

    def plugin_pid(self, name: str) -> int:
        id = str(self.inspect_plugin(name)["Id"])
        pids = [each for each in leftovers.processes_in(id) if leftovers.command_line(each)[0] == b"/actor"]
        assert len(pids) == 1, pids
        return pids[0]

    def all_enabled(self, count: int) -> bool:
        try:
            return bool(sum(each["Enabled"] for each in json.loads(self.request("GET", "/plugins"))) == count)
        except OSError:
            return False

    def children(self) -> tuple[list[int], list[int]]:
        """Its containerd, and its shims."""
        found = [(pid, leftovers.command_line(pid)[0]) for pid in self._descendants()]
        containerd = [pid for pid, name in found if name.endswith(b"containerd")]
        return containerd, [pid for pid, name in found if b"shim" in name]

    def kill(self) -> None:
        """End dockerd alone, as a crash does. Its containerd is killed with it, and its plugins keep running."""
        containerd, _ = self.children()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        until(lambda: not any(map(leftovers.is_alive, containerd)), "dockerd's containerd is gone")
        # a zombie that has not been reaped yet is alive to dockerd, which would wait for it to serve
        (self.state / "containerd/containerd.pid").unlink(missing_ok=True)

    def end(self) -> None:
        """Stop it with all its plugins."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(TIMEOUT)

    def stop(self) -> None:
        """End it and remove its traces, one of which it leaves for each plugin that it has run."""
        if self.process.poll() is None:
            self.end()
        for directory in self._sockets:
            shutil.rmtree(directory, ignore_errors=True)
        super().stop()

    def ls(self) -> None:
        command = ["docker", "--host", f"unix://{self.address}", "plugin", "ls"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Bundles:
    """Bundles for the others: the spec of our own plugin, with a root and a socket directory of their own."""

    def __init__(self, directory: Path, spec: dict[str, Any]) -> None:
        self.directory = directory
        self.rootfs = directory / "rootfs"
        self.rootfs.mkdir(parents=True)
        (self.rootfs / "actor").write_bytes(actor())
        (self.rootfs / "actor").chmod(0o755)
        self._spec = spec

    def make(self, id: str) -> tuple[Path, Path]:
        """A bundle, and where its actor will listen."""
        bundle = self.directory / id
        sockets = bundle / "s"
        sockets.mkdir(parents=True)
        spec = json.loads(json.dumps(self._spec))
        spec["root"]["path"] = str(self.rootfs)
        spec["linux"]["cgroupsPath"] = f"/{CGROUP_PARENT}/{id}"
        for mount in spec["mounts"]:
            if mount["destination"] == "/run/docker/plugins":
                mount["source"] = str(sockets)
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle, sockets / "plugin.sock"

    def drop(self, id: str) -> None:
        shutil.rmtree(self.directory / id)


class Ctr:
    """`ctr run` on the containerd of our engine, in a namespace of its own."""

    def __init__(self, bundles: Bundles, address: str) -> None:
        self.bundles = bundles
        self._ctr = ["ctr", "--address", address, "--namespace", NAMESPACE]

    def run(self, id: str) -> float:
        """Seconds until the socket accepts; removed again."""
        bundle, listens = self.bundles.make(id)
        began = time.perf_counter()
        _quiet([*self._ctr, "run", "-d", "--config", str(bundle / "config.json"), id])
        until(lambda: accepts(listens), f"{id} listens")
        took = time.perf_counter() - began
        self._remove(id)
        return took

    def write(self, id: str, writes: Sequence[tuple[int, int]]) -> list[float]:
        """MB/s of each write, read by ctr and discarded."""
        bundle, listens = self.bundles.make(id)
        command = [*self._ctr, "run", "--config", str(bundle / "config.json"), id]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as attached:
            until(lambda: accepts(listens), f"{id} listens")
            speeds = [request_output(listens, count, piece) for count, piece in writes]
            _quiet([*self._ctr, "task", "kill", "--signal", "SIGKILL", id])
            attached.wait(TIMEOUT)
        self._remove(id)
        return speeds

    def _remove(self, id: str) -> None:
        subprocess.run([*self._ctr, "task", "delete", "-f", id], check=False, capture_output=True)
        _quiet([*self._ctr, "container", "delete", id])
        self.bundles.drop(id)


class Runc:
    """runc alone."""

    def __init__(self, bundles: Bundles) -> None:
        self.bundles = bundles
        self._runc = ["runc", "--root", str(bundles.directory / "runc")]

    def run(self, ids: Sequence[str]) -> float:
        """Create and start all of them at once; seconds until the last one accepts; removed again."""
        made = [(id, *self.bundles.make(id)) for id in ids]
        runc = shlex.join(self._runc)
        began = time.perf_counter()
        children = [
            subprocess.Popen(
                ["sh", "-c", f"{runc} create --bundle {bundle} {id} && exec {runc} start {id}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            for id, bundle, _ in made
        ]
        for _, _, listens in made:
            until(lambda listens=listens: accepts(listens), "a plugin of runc listens")  # type: ignore[misc]
        took = time.perf_counter() - began
        for child in children:
            assert child.wait(TIMEOUT) == 0
        for id in ids:
            _quiet([*self._runc, "delete", "--force", id])
            self.bundles.drop(id)
        return took


def _quiet(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
