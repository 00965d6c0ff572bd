"""A machine of its own for programs that use plugins: podman, a dockerd's socket directory, an image for containers.

It is a mount namespace below a directory whose mounts are shared, as those of a machine with systemd are: what a
plugin mounts there is seen by the consumers, and what these mount vanishes with the namespace.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from support import leftovers
from support.engines import kill, processes_below
from support.limits import limit

BUSYBOX = Path("/bin/busybox")
IMAGE = "localhost/busybox:1"
WITHIN = limit(60.0)
_PLUGINS = Path("/run/docker/plugins")
_CONTAINERS = """
[engine]
lock_type = "file"
events_logger = "file"
cgroup_manager = "cgroupfs"
runtime = "runc"
network_cmd_path = ""
[containers]
netns = "none"
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
"""


class Failed(Exception):
    """A command of a consumer failed."""

    def __init__(self, words: tuple[str, ...], status: int, output: str) -> None:
        super().__init__(f"{' '.join(words)}: {status}: {output}")
        self.status, self.output = status, output


class ConsumerMachine:
    """The namespace. ``close`` must be called."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="m-use-", dir="/tmp"))
        self.sockets = self.directory / "plugins"
        self.configuration = self.directory / "containers"
        self.podman_config = self.configuration / "containers.conf.d/50-moorage.conf"
        # Left there: a directory that is removed takes what other mount namespaces have mounted on it with it.
        _PLUGINS.mkdir(parents=True, exist_ok=True)
        self.sockets.mkdir()
        (self.directory / "engine").mkdir()
        (self.configuration / "containers.conf.d").mkdir(parents=True)
        (self.configuration / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        (self.configuration / "containers.conf").write_text(_CONTAINERS)
        subprocess.run(["mount", "--bind", self.directory, self.directory], check=True)
        subprocess.run(["mount", "--make-shared", self.directory], check=True)
        script = f"""
            set -e
            mount --bind {self.sockets} {_PLUGINS}
            mount --bind {self.configuration} /etc/containers
            cd /
            echo ready
            exec sleep 1000000
        """
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "ready\n"

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs these words on the machine."""
        return ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--", *map(str, words)]

    def run(self, *words: str | Path, within: float = WITHIN, env: Mapping[str, str] | None = None) -> str:
        """Standard output of a command. Raises: Failed."""
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
            env={**os.environ, **(env or {})},
        )
        if done.returncode != 0:
            raise Failed(tuple(map(str, words)), done.returncode, done.stdout + done.stderr)
        return done.stdout

    def close(self) -> None:
        """End it; raises where a process of it still runs."""
        deadline = time.monotonic() + limit(10)
        while (left := processes_below(self.directory)) and time.monotonic() < deadline:
            time.sleep(0.05)
        names = [b" ".join(leftovers.command_line(each)).decode() for each in left]
        kill(left)
        with self.holder:  # which closes the pipe and waits
            self.holder.kill()
        for point in reversed(leftovers.mounts_below(self.directory)):
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)
        assert names == []


class Podman:
    """podman on that machine, with storage of its own."""

    def __init__(self, machine: ConsumerMachine) -> None:
        self.machine = machine
        self._home = machine.directory / "podman"

    def __call__(self, *words: str, within: float = WITHIN) -> str:
        """Standard output of a podman command. Raises: Failed."""
        return self.machine.run("podman", *self._options, *words, within=within)

    @property
    def _options(self) -> list[str]:
        return [*(f"--{name}={self._home / name}" for name in ("root", "runroot", "tmpdir")), "--storage-driver=vfs"]

    def command(self) -> list[str]:
        """The beginning of a command line of podman."""
        return self.machine.command("podman", *self._options)

    def use(self, plugins: Mapping[str, Path], seconds: int = 60) -> None:
        """Write the file that names sockets of volume drivers, as an administrator would."""
        lines = "".join(f"{json.dumps(name)} = {json.dumps(str(path))}\n" for name, path in plugins.items())
        text = f"[engine]\nvolume_plugin_timeout = {seconds}\n[engine.volume_plugins]\n{lines}"
        (self.machine.configuration / "containers.conf.d/10-test.conf").write_text(text)

    def load_image(self) -> None:
        self("import", str(image_archive(self.machine.directory)), IMAGE)

    def run(self, *words: str, script: str, within: float = WITHIN) -> str:
        """What a shell script prints in a new container with these options."""
        return self("run", "--rm", "--network=none", *words, IMAGE, "/bin/sh", "-ec", script, within=within)

    def close(self) -> None:
        with suppress(Failed, subprocess.TimeoutExpired):
            self("rm", "--all", "--force", "--time=0")


class Docker:
    """The docker command, for the dockerd with this socket."""

    def __init__(self, machine: ConsumerMachine, address: Path) -> None:
        self.machine = machine
        self.address = address

    def __call__(self, *words: str, within: float = WITHIN) -> str:
        """Standard output of a docker command. Raises: Failed."""
        environment = {"DOCKER_CONFIG": str(self.machine.directory / "docker-config")}
        return self.machine.run("docker", f"--host=unix://{self.address}", *words, within=within, env=environment)

    def load_image(self) -> None:
        self("import", str(image_archive(self.machine.directory)), IMAGE)

    def run(self, *words: str, script: str, network: str = "none", within: float = WITHIN) -> str:
        """What a shell script prints in a new container with these options."""
        command = ("run", "--rm", f"--network={network}", *words, IMAGE, "/bin/sh", "-ec", script)
        return self(*command, within=within)


def image_archive(directory: Path) -> Path:
    """A root file system with busybox, as a tar."""
    archive = directory / "image.tar"
    if not archive.exists():
        with tempfile.TemporaryDirectory() as root:
            for name in ("bin", "dev", "proc", "sys", "tmp", "etc", "mnt"):
                Path(root, name).mkdir()
            shutil.copy(BUSYBOX, Path(root, "bin/busybox"))
            for name in ("sh", "cat", "echo", "ls", "sleep", "rm", "mkdir", "wget", "true", "seq", "ping", "ip"):
                Path(root, "bin", name).symlink_to("busybox")
            subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    return archive


@contextmanager
def consumer_machine() -> Iterator[ConsumerMachine]:
    made = ConsumerMachine()
    try:
        yield made
    finally:
        made.close()


@contextmanager
def podman_on(machine: ConsumerMachine) -> Iterator[Podman]:
    """With the image loaded; its containers are removed at the end."""
    made = Podman(machine)
    try:
        made.load_image()
        yield made
    finally:
        made.close()


def mountinfo(machine: ConsumerMachine) -> Any:
    """The lines of the machine's mounts, for a failure's text."""
    return Path(f"/proc/{machine.holder.pid}/mountinfo").read_text().splitlines()
