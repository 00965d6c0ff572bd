"""A whole engine for tests: a process of its own on directories of its own, with plugins that do what requests name."""

import contextlib
import http.client
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio

from moorage.daemon import ServeOptions, stop_engine
from moorage.host.mounts import unmount_all_below
from support import leftovers
from support.foreground import wait_until
from support.limits import limit

SOURCE = Path(__file__).with_name("actor.c")
WITHIN = limit(30.0)
SERVE = """
import gc
gc.disable()  # nothing of an import is garbage, as moorage serve has it
import anyio, json, logging, os, sys
from dataclasses import replace
from pathlib import Path
from moorage.registry.hosts import Options
from moorage.engine.installation import Registries
import msgspec
from moorage.plugins import Confinement, parse_policy
from moorage.daemon import ServeOptions, run_engine, stop_engine
from moorage.timeouts import DEFAULT
gc.freeze()
gc.enable()
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
what = {"serve": run_engine, "down": stop_engine}[sys.argv[1]]
_, _, root, exec_root, containerd, namespace, metrics, serve_options = sys.argv
more = json.loads(serve_options)
certificates = tuple(Path(each) for each in more.get("certificates", ()))
hosts = Options(more.get("insecure", ()), more.get("mirrors", ()), certificates)
policy = parse_policy(json.dumps(more["policy"]).encode()) if "policy" in more else None
options = ServeOptions(
    Path(root),
    Path(exec_root),
    containerd=containerd or None,
    namespace=namespace,
    timeouts=replace(DEFAULT, **more.get("timeouts", {})),
    metrics_address=metrics or None,
    publish_directory=Path(more["publish_directory"]),
    podman_config=Path(more["podman_config"]),
    registries=Registries(hosts, policy),
    live_restore=more.get("live_restore", True),
    shim=more.get("shim", "each"),
    runtime=more.get("runtime") or os.environ["MOORAGE_RUNTIME"],
    cgroup_driver=more.get("cgroup_driver", "auto"),
    ui=more.get("ui", ""),
    confinement=msgspec.convert(more.get("confinement", {}), Confinement),
)
sys.exit(anyio.run(what, options, backend_options={"use_uvloop": True}))
"""


@cache
def actor() -> bytes:
    """The program of ``actor.c``."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, "actor")
        subprocess.run(["gcc", "-static", "-O1", "-s", "-o", program, SOURCE], check=True)
        return program.read_bytes()


def config(*arguments: str, **fields: Any) -> dict[str, Any]:
    """The config of an actor that does this."""
    return {
        "description": "an actor",
        "entrypoint": ["/actor", *arguments],
        "interface": {"types": ["docker.volumedriver/1.0"], "socket": "plugin.sock"},
        "network": {"type": "none"},
        **fields,
    }


def package(document: dict[str, Any] | bytes, files: dict[str, bytes] | None = None) -> bytes:
    """A package as a tar: this config, an actor, and these files."""
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data, mode in [
            ("config.json", raw, 0o644),
            ("rootfs/actor", actor(), 0o755),
            *((f"rootfs/{name}", data, 0o644) for name, data in (files or {}).items()),
        ]:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return stream.getvalue()


class Refused(Exception):
    """The API answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("moorage", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def send(self, data: Any) -> None:
        """Who refuses a call may hang up before the body was sent; what it answered can be read all the same."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            super().send(data)


class EngineProcess:
    """An engine below two directories: started, killed and started again by a test."""

    def __init__(
        self,
        base: Path,
        *,
        containerd: str = "",
        namespace: str = "plugins.moby",
        metrics: str = "",
        **serve_options: Any,
    ) -> None:
        """``serve_options``: prefix (of its command), insecure, mirrors, certificates, policy (of registries),
        timeouts, live_restore, shim, runtime, cgroup_driver, confinement (defaults), publish_directory, podman_config,
        ui.
        """
        self.root = base / "data"
        # only a name: an engine that a test never starts leaves nothing
        self.exec_root = Path(f"/run/mt-{secrets.token_hex(4)}")
        self.socket = self.exec_root / "moorage.sock"
        # beside it: an engine leaves nothing in its own directory
        self.published = Path(serve_options.setdefault("publish_directory", f"{self.exec_root}.p"))
        self.podman_config = Path(serve_options.setdefault("podman_config", str(base / "podman.conf")))
        self.log = base / "engine.log"
        self.containerd, self.namespace, self.metrics, self.serve_options = (
            containerd,
            namespace,
            metrics,
            serve_options,
        )
        self.prefix: list[str] = list(serve_options.pop("prefix", ()))
        self.preamble = ""
        """Python that the next process runs before the engine."""
        self.child: subprocess.Popen[bytes] | None = None

    # the process

    def _popen(self, verb: str) -> subprocess.Popen[bytes]:
        paths = [str(self.root), str(self.exec_root), self.containerd, self.namespace]
        arguments = [verb, *paths, self.metrics, json.dumps(self.serve_options)]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                [*self.prefix, sys.executable, "-c", self.preamble + SERVE, *arguments],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start(self, *, wait: bool = True) -> "EngineProcess":
        """Start it, and return when it answers and has found containerd."""
        self.child = self._popen("serve")
        if wait:
            self.wait_until(lambda: self.info()["Moorage"]["Problem"] == "", "the engine has containerd")
        return self

    def wait_until(self, condition: Any, what: str, within: float = WITHIN) -> None:
        """Wait until a condition over the API is true; a failed request counts as false."""

        def is_met() -> bool:
            child = self.child
            assert child is None or child.poll() is None, f"the engine ended: {self.log.read_text()[-4000:]}"
            try:
                return bool(condition())
            except (OSError, http.client.HTTPException):
                return False

        wait_until(is_met, what, within)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and take its status."""
        assert self.child is not None
        self.child.send_signal(number)
        status = self.child.wait(limit(30))
        self.child = None
        return status

    def down(self) -> None:
        """``moorage down``: everything ends but the data."""
        done = self._popen("down")
        assert done.wait(limit(60)) == 0, self.log.read_text()[-4000:]
        if self.child is not None:
            assert self.child.wait(limit(10)) == 0
            self.child = None

    def close(self) -> None:
        """Take everything down whatever the test did; nothing is left but the data. Raises where something is."""
        if self.child is not None and self.child.poll() is not None:
            self.child = None
        if self.prefix[:1] == ["nsenter"]:  # its mounts are visible in its mount namespace only
            self.down()
            assert self.left() == []
            self._remove_directories()
            return
        options = ServeOptions(
            self.root,
            self.exec_root,
            containerd=self.containerd or None,
            namespace=self.namespace,
            publish_directory=self.published,
            podman_config=self.podman_config,
        )
        # What `moorage down` does, without a process that imports all of it once more for each engine of a test; in a
        # thread, because an event loop may run in this one.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: anyio.run(stop_engine, options)).result() == 0
        if self.child is not None:
            assert self.child.wait(limit(10)) == 0
            self.child = None
        left = self.left()
        assert left == [], left
        self._remove_directories()

    def _remove_directories(self) -> None:
        for path in (self.exec_root, Path(f"{self.exec_root}.p")):  # another directory is the test's
            shutil.rmtree(path, ignore_errors=True)

    def left(self) -> list[str]:
        """The files outside the data directory."""
        paths = (self.exec_root, self.root)
        return [
            *(f"mount {point}" for point in leftovers.mounts_below(*paths)),
            *(f"process {pid}: {b' '.join(leftovers.command_line(pid)).decode()}" for pid in processes_below(*paths)),
            *(f"file {path}" for path in sorted(self.exec_root.rglob("*")) if self.exec_root.exists()),
            *(f"socket {path}" for path in sorted(self.published.rglob("*.sock")) if self.published.exists()),
        ]

    # the API

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout: float = 2 * WITHIN,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """One request; the status and the body as they come."""
        sent = dict(headers or {})
        if isinstance(body, dict | list):
            body, sent["Content-Type"] = json.dumps(body), "application/json"
        connection = UnixConnection(self.socket, timeout)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def request_json(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """One request; what it answers as JSON, or None. Raises: Refused."""
        status, raw = self.request(method, path, body, **more)
        if status >= 400:
            raise Refused(status, json.loads(raw)["message"])
        return json.loads(raw) if raw else None

    def info(self) -> Any:
        return self.request_json("GET", "/info")

    # packages of registries

    def privileges(self, remote: str, **headers: str) -> Any:
        return self.request_json("GET", f"/plugins/privileges?remote={quote(remote, safe='')}", headers=headers)

    def install(self, remote: str, name: str = "", granted: Any = None, **headers: str) -> list[dict[str, Any]]:
        """Docker's pull; the lines of progress. Raises: Refused, also for a failure on the way (status 200)."""
        query = f"remote={quote(remote, safe='')}&name={quote(name, safe='')}"
        return self._streamed(f"/plugins/pull?{query}", granted, headers)

    def ensure(self, remote: str, name: str = "", *, verb: str = "ensure", **body: Any) -> list[dict[str, Any]]:
        """Our install."""
        query = f"remote={quote(remote, safe='')}&name={quote(name, safe='')}"
        return self._streamed(f"/moorage/v1/{verb}?{query}", body, {})

    def upgrade(self, name: str, remote: str = "", granted: Any = None, **headers: str) -> list[dict[str, Any]]:
        """Docker's upgrade."""
        return self._streamed(f"/plugins/{name}/upgrade?remote={quote(remote, safe='')}", granted, headers)

    def change(self, name: str, remote: str = "", query: str = "restart=1", **body: Any) -> list[dict[str, Any]]:
        """Our upgrade, with a restart."""
        path = f"/moorage/v1/plugins/{quote(name, safe='')}/upgrade?remote={quote(remote, safe='')}&{query}"
        return self._streamed(path, body, {})

    def _streamed(self, path: str, body: Any, headers: dict[str, str]) -> list[dict[str, Any]]:
        status, raw = self.request("POST", path, body, headers=headers)
        if status >= 400:
            raise Refused(status, json.loads(raw)["message"])
        lines = [json.loads(line) for line in raw.splitlines()]
        if lines and "error" in lines[-1]:
            raise Refused(status, lines[-1]["error"])
        return lines

    def create(self, name: str, document: dict[str, Any] | bytes | None = None, **files: bytes) -> None:
        body = package(document if document is not None else config(), files)
        self.request_json(
            "POST", f"/plugins/create?name={quote(name, safe='')}", body, headers={"Content-Type": "application/x-tar"}
        )

    def enable(self, name: str, within: int = int(WITHIN)) -> None:
        self.request_json("POST", f"/plugins/{name}/enable?timeout={within}")

    def disable(self, name: str, *, force: bool = False) -> None:
        self.request_json("POST", f"/plugins/{name}/disable{'?force=1' if force else ''}")

    def set(self, name: str, *assignments: str) -> None:
        self.request_json("POST", f"/plugins/{name}/set", list(assignments))

    def remove(self, name: str, *, force: bool = False) -> None:
        self.request_json("DELETE", f"/plugins/{name}{'?force=1' if force else ''}")

    def inspect(self, name: str) -> Any:
        return self.request_json("GET", f"/plugins/{name}/json")

    def more(self, name: str) -> Any:
        """What is not in Docker's object."""
        return self.inspect(name)["Moorage"]

    def plugins(self) -> Any:
        return self.request_json("GET", "/plugins")

    def request_own(self, method: str, name: str, verb: str, body: Any = None, **more: Any) -> Any:
        """One of our own calls."""
        return self.request_json(method, f"/moorage/v1/plugins/{quote(name, safe='')}/{verb}", body, **more)

    def call(self, name: str, method: str) -> str:
        """What a plugin answers."""
        _, raw = self.request(
            "POST", f"/moorage/v1/plugins/{quote(name, safe='')}/call?method={quote(method, safe='')}"
        )
        return raw.decode()

    def crash(self, name: str, code: int) -> None:
        """Let a plugin exit with this code."""
        with contextlib.suppress(Refused, OSError, http.client.HTTPException):
            self.call(name, f"exit/{code}")

    def logs(self, name: str, query: str = "") -> list[dict[str, str]]:
        """A plugin's output."""
        _, raw = self.request("GET", f"/moorage/v1/plugins/{quote(name, safe='')}/logs?{query}")
        return [json.loads(line) for line in raw.splitlines()]

    def metrics_url(self) -> str:
        """Where the present engine's listener for metrics is."""
        return str(re.findall(r"metrics are at (\S+)", self.log.read_text())[-1])

    def state(self, name: str) -> str:
        return str(self.more(name)["State"])

    def until(self, name: str, state: str, within: float = WITHIN) -> Any:
        """Wait until a plugin is in this state."""
        self.wait_until(lambda: self.state(name) == state, f"{name} is {state}", within)
        return self.more(name)

    def until_restarted(self, name: str, restarts: int, within: float = WITHIN) -> None:
        """Wait until a plugin is ready again after so many restarts: in one query, else it may still be ready."""

        def is_ready_again() -> bool:
            more = self.more(name)
            return bool(more["State"] == "ready" and more["Restarts"] >= restarts)

        self.wait_until(is_ready_again, f"{name} is restarted", within)


def processes_below(*paths: Path) -> list[int]:
    """Processes that name a path below one of these on their command line, zombies apart."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path("/proc", entry, "cmdline").read_bytes()
                if any(f"{workspace}/".encode() in words for workspace in paths):
                    found.append(int(entry))
    return found


@contextlib.contextmanager
def engine(base: Path, **options: Any) -> Iterator[EngineProcess]:
    """An engine that runs, and that is taken down at the end; a failure shows its log."""
    made = EngineProcess(base, **options)
    try:
        yield made.start()
        made.close()
    except BaseException:
        sys.stderr.write(made.log.read_text()[-20000:] if made.log.exists() else "no log\n")
        if made.child is not None and made.child.poll() is None:
            made.child.kill()
            made.child.wait()
        with contextlib.suppress(Exception):
            made._popen("down").wait(limit(60))
        # processes that remain even then are the failure of this test, and must not become one of others
        kill(processes_below(made.exec_root, made.root))
        unmount_all_below(made.root)  # of consumers that a test has not let unmount
        raise


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    """Signal processes that may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def root_of(house: EngineProcess, name: str) -> Path:
    """The root file system of a plugin, as it is mounted."""
    return Path(house.exec_root, "p", house.inspect(name)["Id"][:12], "root")
