"""Drivers on the kit as dockerd and podman use them: the examples as processes, containers unmodified.

Everything runs in a mount namespace of its own with an empty /run, which a sleeping process keeps open: the sockets in
/run/docker/plugins, the mounts of the driver, dockerd, podman.
"""

import io
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.dockerd import Dockerd, Refused
from support import leftovers
from support.foreground import wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "podman", "static-cc")]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = limit(60.0)
LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
PROGRAMS = {
    "hello": "hello-volume/rootfs/plugin/hello_volume.py",
    "json-lines": "json-lines/rootfs/plugin/json_lines.py",
    "rule-file": "rule-file/rootfs/plugin/rule_file.py",
}


class Namespace:
    """A mount namespace with an empty /run, and the drivers that run in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        script = "mount -t tmpfs tmpfs /run && mkdir -p /run/docker/plugins && exec sleep 100000"
        self.holder = subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script])
        wait_until(lambda: Path(f"/proc/{self.holder.pid}/comm").read_text() == "sleep\n", "a mount namespace")
        self.drivers: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, *words: str | Path) -> list[str]:
        """A command in this namespace."""
        return ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", *map(str, words)]

    def inside(self, path: str | Path) -> Path:
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def state(self, name: str) -> Path:
        return self.directory / name

    def socket(self, name: str) -> str:
        return f"/run/docker/plugins/{name}.sock"

    def start(self, name: str) -> None:
        """Start a driver, as often as a test likes; returns when it accepts."""
        settings = {"hello": "HELLO_ROOT", "json-lines": "LOGS"}
        environment = {
            **os.environ,
            "PLUGIN_SOCKET": self.socket(name),
            "PYTHONPATH": str(ROOT / "src"),
            "RULES": str(self.state("rules")),
            settings.get(name, "UNUSED"): str(self.state(name)),
        }
        command = self.command(sys.executable, "-B", ROOT / "examples" / PROGRAMS[name])
        log = self.directory / f"{name}.log"
        log.touch()
        starts = log.read_text().count("listening on")
        with log.open("ab") as output:
            self.drivers[name] = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        wait_until(lambda: log.read_text().count("listening on") > starts, f"{name} listens: {log}")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        self.drivers[name].send_signal(number)
        self.drivers[name].wait(SECONDS)

    def close(self) -> None:
        for each in self.drivers.values():
            if each.poll() is None:
                each.kill()
                each.wait()
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    directory = Path(tempfile.mkdtemp(prefix="m-kit-", dir="/tmp"))
    made = Namespace(directory)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


class NamespacedDockerd(Dockerd):
    """A dockerd in a mount namespace, with an image ``say``."""

    def __init__(self, directory: Path, namespace: Namespace) -> None:
        self.namespace = namespace
        super().__init__(directory)

    def _spawn(self, *options: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "NOTIFY_"))}
        command = self.namespace.command(*self._command, *options)
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
            )

    def restart(self, *options: str) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SECONDS)
        self.start_again(*options)
        self.wait_until_serving()

    def load_image(self, tar: bytes) -> None:
        answer = self.request("POST", "/images/create?fromSrc=-&repo=say", tar, "application/x-tar")
        assert b'"error"' not in answer, answer

    def create(
        self,
        *steps: str,
        mounts: Sequence[dict[str, Any]] = (),
        log: str = "",
        options: Mapping[str, str] | None = None,
    ) -> str:
        """A container that does these steps, with a log driver and its options; its id."""
        host: dict[str, Any] = {"NetworkMode": "none", "Mounts": list(mounts)}
        if log:
            host["LogConfig"] = {"Type": log, "Config": dict(options or {})}
        body = {"Image": "say", "Cmd": ["/say", *steps], "HostConfig": host}
        return str(json.loads(self.request("POST", "/containers/create", json.dumps(body).encode()))["Id"])

    def start(self, id: str) -> None:
        self.request("POST", f"/containers/{id}/start")

    def wait(self, id: str) -> int:
        return int(json.loads(self.request("POST", f"/containers/{id}/wait"))["StatusCode"])

    def run(self, *steps: str, **more: Any) -> str:
        """A container that has done these steps with success; its id."""
        id = self.create(*steps, **more)
        self.start(id)
        assert self.wait(id) == 0
        return id

    def remove(self, id: str) -> None:
        self.request("DELETE", f"/containers/{id}?force=1")

    def logs(self, id: str) -> list[tuple[int, str]]:
        """The lines of ``docker logs``, with 1 for standard output and 2 for standard error."""
        raw = self.request("GET", f"/containers/{id}/logs?stdout=1&stderr=1")
        found, at = [], 0
        while at < len(raw):
            stream, size = struct.unpack(">BxxxI", raw[at : at + 8])
            found += [(stream, line) for line in raw[at + 8 : at + 8 + size].decode().splitlines()]
            at += 8 + size
        return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A tar of a root file system with ``say``."""
    program = tmp_path_factory.mktemp("say") / "say"
    subprocess.run(["gcc", "-static", "-O1", "-s", "-o", program, Path(__file__).with_name("say.c")], check=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(program, "say")
    return stream.getvalue()


@contextmanager
def dockerd_in(namespace: Namespace, image: bytes) -> Iterator[NamespacedDockerd]:
    directory = Path(tempfile.mkdtemp(prefix="m-dockerd-", dir="/tmp"))
    peer = NamespacedDockerd(directory, namespace)
    try:
        peer.wait_until_serving()
        peer.load_image(image)
        yield peer
    except BaseException:
        sys.stderr.write(peer.log.read_text()[-5000:])
        for each in namespace.directory.glob("*.log"):
            sys.stderr.write(f"{each}: {each.read_text()[-3000:]}\n")
        raise
    finally:
        peer.stop()
        subprocess.run(namespace.command("umount", "-R", "--lazy", directory), check=False, capture_output=True)
        wait_until(lambda: not leftovers.mounts_below(directory), "no mounts")
        namespace.holder.kill()
        namespace.holder.wait()
        shutil.rmtree(directory, ignore_errors=True)


def users(namespace: Namespace, volume: str) -> list[str]:
    """The ids of a volume's users in the driver's file."""
    document = json.loads((namespace.state("hello") / "volumes.json").read_text())
    return list(document["volumes"][volume]["users"])


def test_dockerd_uses_the_volume_driver_through_a_kill(namespace: Namespace, image: bytes) -> None:
    namespace.start("hello")
    mount = {
        "Type": "volume",
        "Source": "data",
        "Target": "/v",
        "VolumeOptions": {"DriverConfig": {"Name": "hello", "Options": {"mode": "0750"}}},
    }
    with dockerd_in(namespace, image) as dockerd:
        dockerd.run("write:/v/one:first", mounts=[mount])
        assert (namespace.state("hello") / "store/data/one").read_text() == "first"
        assert users(namespace, "data") == []

        both = [dockerd.create("pause", mounts=[mount]) for _ in range(2)]
        for each in both:
            dockerd.start(each)
        assert len(users(namespace, "data")) == 2
        namespace.kill("hello")
        namespace.start("hello")
        assert len(users(namespace, "data")) == 2
        with pytest.raises(Refused, match="in use"):
            dockerd.request("DELETE", "/volumes/data")
        dockerd.remove(both[0])
        assert len(users(namespace, "data")) == 1
        dockerd.run("write:/v/two:second", mounts=[mount])
        dockerd.remove(both[1])
        assert users(namespace, "data") == []
        assert (namespace.state("hello") / "store/data/two").read_text() == "second"

        volumes = json.loads(dockerd.request("GET", "/volumes"))["Volumes"]
        assert [(each["Name"], each["Driver"], each["Scope"]) for each in volumes] == [("data", "hello", "local")]
        for each in json.loads(dockerd.request("GET", "/containers/json?all=1")):
            dockerd.remove(each["Id"])
        dockerd.request("DELETE", "/volumes/data")
        assert not (namespace.state("hello") / "store/data").exists()


def test_dockerd_logs_through_the_log_driver_and_through_a_kill_of_it(namespace: Namespace, image: bytes) -> None:
    namespace.start("json-lines")
    with dockerd_in(namespace, image) as dockerd:
        id = dockerd.run("out:one", "err:two", "long:100000", "out:last", log="json-lines")
        lines = dockerd.logs(id)
        assert sorted(lines) == sorted([(1, "one"), (2, "two"), (1, "x" * 100_000), (1, "last")])
        stored = (namespace.state("json-lines") / f"{id}.jsonl").read_text().splitlines()
        assert {json.loads(line)["line"] for line in stored} == {"one", "two", "x" * 100_000, "last"}

        id = dockerd.create("tick:200", "out:end", log="json-lines")
        dockerd.start(id)
        file = namespace.state("json-lines") / f"{id}.jsonl"
        wait_until(lambda: file.exists() and "tick 20" in file.read_text(), "lines are stored")
        namespace.kill("json-lines")
        namespace.start("json-lines")
        assert dockerd.wait(id) == 0
        found = [line for _, line in dockerd.logs(id)]
        assert found[-1] == "end"
        assert "tick 199" in found
        # dockerd drops what it writes while no reader exists; nothing else is lost, and nothing is twice
        ticks = [int(line.split()[1]) for line in found if line.startswith("tick")]
        assert ticks == sorted(set(ticks))
        refused = dockerd.create("out:x", log="json-lines", options={"x": "y"})
        with pytest.raises(Refused, match="there is only max-size"):
            dockerd.start(refused)


def test_dockerd_does_what_the_authorization_driver_allows(namespace: Namespace, image: bytes) -> None:
    namespace.state("rules").write_text("deny DELETE /images/*\nallow * *\n")
    namespace.start("rule-file")
    with dockerd_in(namespace, image) as dockerd:
        dockerd.restart("--authorization-plugin=rule-file")
        dockerd.run("out:allowed")
        with pytest.raises(Refused, match=r"deny DELETE /images/\*"):
            dockerd.request("DELETE", "/images/say")
        namespace.kill("rule-file")
        namespace.start("rule-file")
        dockerd.run("out:still allowed")
        large = {"Image": "say", "Cmd": ["/say", "x" * 100_000], "Labels": {"a": "y" * 900_000}}
        dockerd.request("POST", "/containers/create", json.dumps(large).encode())
        namespace.state("rules").write_text("allow GET *\nallow HEAD *\n")
        with pytest.raises(Refused, match="no rule allows POST"):
            dockerd.create("out:refused")
        namespace.state("rules").write_text("allow * *\n")
        os.utime(namespace.state("rules"), (1, 1))
        dockerd.request("DELETE", "/images/say?force=1")


class Podman:
    """podman with directories of its own, in a mount namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.directory = namespace.directory / "podman"
        self.directory.mkdir()
        self.group = f"moorage-kit-{namespace.directory.name}"
        settings = self.directory / "containers.conf"
        settings.write_text(f'[engine.volume_plugins]\nhello = "{namespace.socket("hello")}"\n')
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}
        where = [f"--root={self.directory / 'root'}", f"--runroot={self.directory / 'run'}"]
        where += [f"--tmpdir={self.directory / 'tmp'}", "--runtime=runc", "--cgroup-manager=cgroupfs"]
        self.options = [*where, "--storage-driver=vfs"]

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        command = self.namespace.command("podman", *self.options, *words)
        done = subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip() if done.returncode == 0 else done.stderr

    def run(self, *steps: str, detach: bool = False) -> str:
        # its defaults are above what a root without CAP_SYS_RESOURCE may give
        hard = {kind: min(resource.getrlimit(number)[1], 16384) for kind, number in LIMITS.items()}
        limits = [f"--ulimit={kind}={most}:{most}" for kind, most in hard.items()]
        options = [*limits, f"--cgroup-parent=/{self.group}", "--network=none", "-v", "data:/v", "--log-driver=none"]
        return self("run", *options, "-d" if detach else "--rm", "say", "/say", *steps)

    def close(self) -> None:
        """Remove its containers, and the control groups that it leaves."""
        self("rm", "--all", "--force", "--time", "0", check=False)
        for top in Path("/sys/fs/cgroup").glob(f"*/{self.group}"):
            for group in (*sorted(top.rglob("*/"), reverse=True), top):
                group.rmdir()


def test_podman_uses_the_volume_driver_through_a_kill(namespace: Namespace, image: bytes) -> None:
    namespace.start("hello")
    podman = Podman(namespace)
    (podman.directory / "say.tar").write_bytes(image)
    podman("import", podman.directory / "say.tar", "say")
    podman("volume", "create", "--driver", "hello", "--opt", "mode=0750", "data")
    try:
        podman.run("write:/v/one:first")
        assert (namespace.state("hello") / "store/data/one").read_text() == "first"
        assert users(namespace, "data") == []

        id = podman.run("pause", detach=True)
        assert len(users(namespace, "data")) == 1
        namespace.kill("hello")
        namespace.start("hello")
        # podman counts by itself, and sends no Mount for the second container: the driver has mounted it again
        podman.run("write:/v/two:second")
        assert (namespace.state("hello") / "store/data/two").read_text() == "second"
        podman("rm", "--force", "--time", "0", id)
        assert users(namespace, "data") == []
        assert "data" in podman("volume", "ls")
        podman("volume", "rm", "data")
        assert not (namespace.state("hello") / "store/data").exists()
        assert "there is only mode" in podman("volume", "create", "--driver", "hello", "--opt", "x=y", "b", check=False)
    finally:
        podman.close()
