"""packaging/swarm on a real Swarm: three dockerds in network namespaces, each with an engine of its own."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

import moorage
from peers.dockerd import Dockerd
from support.apply_files import push_version
from support.engines import EngineProcess, engine
from support.foreground import wait_until
from support.limits import limit
from support.pages import typed_lines
from support.registries import Served

pytestmark = [
    pytest.mark.real,
    pytest.mark.extensive,
    pytest.mark.needs("static-cc", "docker-registry", "dockerd", "docker"),
]

ROOT = Path(__file__).resolve().parents[2]
STACK = ROOT / "packaging/swarm/stack.yaml"
DEPLOY, SHOW = typed_lines((ROOT / "docs/guide/rolling-out-with-swarm.md").read_text())
RUN = Path("/run/moorage")
NODES = (1, 2, 3)
WITHIN = limit(120)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def networks(mark: str) -> Iterator[list[str]]:
    """Three network namespaces on one bridge, which is in the first one, with addresses 10.77.0.1 to 3."""
    names = [f"{mark}{number}" for number in NODES]
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "br0", "type", "bridge")
        ip("-n", names[0], "addr", "add", "10.77.0.1/24", "dev", "br0")
        ip("-n", names[0], "link", "set", "br0", "up")
        for number, name in zip(NODES[1:], names[1:], strict=True):
            ip("-n", name, "link", "add", "v0", "type", "veth", "peer", "name", f"v{number}", "netns", names[0])
            ip("-n", names[0], "link", "set", f"v{number}", "master", "br0")
            ip("-n", names[0], "link", "set", f"v{number}", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "v0")
            ip("-n", name, "link", "set", "v0", "up")
        yield names


@contextmanager
def node(namespace: str, directory: Path, made: EngineProcess) -> Iterator[Dockerd]:
    """A dockerd in this network, for which the engine's directory is /run/moorage."""
    directory.mkdir()
    enter = ["nsenter", f"--net=/run/netns/{namespace}", "unshare", "--mount", "--propagation=private"]
    mount = ["sh", "-c", f'mount --bind "$0" {RUN} && exec "$@"', str(made.socket.parent)]
    dockerd = Dockerd(directory, prefix=[*enter, *mount], options=["--ip6tables=false", "--storage-driver=vfs"])
    try:
        dockerd.wait_until_serving()
        yield dockerd
    finally:
        dockerd.stop()


def docker(dockerd: Dockerd, *words: str | Path, stdin: bytes = b"", **environment: str) -> str:
    command = ["docker", "--host", f"unix://{dockerd.address}", *words]
    within = limit(60)
    done = subprocess.run(command, capture_output=True, input=stdin, env={**os.environ, **environment}, timeout=within)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def image() -> bytes:
    """The command of this checkout, in an image that has the machine's programs by mounts."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                archive.addfile(link)
        script = f'#!/bin/sh\nexec {sys.executable} -m moorage "$@"\n'.encode()
        file = tarfile.TarInfo("opt/bin/moorage")
        file.size, file.mode = len(script), 0o755
        archive.addfile(file, io.BytesIO(script))
    return stream.getvalue()


class Swarm:
    """The manager, the engines of the nodes, and the stack."""

    def __init__(self, manager: Dockerd, engines: list[EngineProcess], registry: Served, folder: Path) -> None:
        self.manager, self.engines, self.registry, self.folder = manager, engines, registry, folder
        self.directory = folder / "packaging/swarm"
        self.directory.mkdir(parents=True)
        stack = yaml.safe_load(STACK.read_text())
        service = stack["services"]["apply"]
        paths = {"/usr", sys.base_prefix, sys.prefix, str(Path(moorage.__file__).parents[1])}
        service["image"] = "moorage:test"
        service["volumes"] += [f"{path}:{path}:ro" for path in sorted(paths)]
        service["healthcheck"] |= {"interval": "1s", "start_period": "10s"}
        service["deploy"]["update_config"] |= {"monitor": "1s"}
        (self.directory / "stack.yaml").write_text(yaml.safe_dump(stack))

    def deploy(self, version: str, tag: str) -> None:
        """Type the command of the guide, in a directory with the file of the package for the image of the test."""
        text = f"name: f\nplugins: [{{name: p, reference: '{self.registry.host}/t/f:{tag}'}}]\n"
        (self.directory / "plugins.yaml").write_text(text)
        self.type(DEPLOY.replace("VERSION=1 ", f"VERSION={version} "))

    def type(self, command: str) -> str:
        """What a command of the guide prints."""
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.manager.address}"}
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, cwd=self.folder, env=environment, timeout=limit(120)
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def versions(self) -> list[str]:
        """What the engines run, ready."""
        found = [each for made in self.engines for each in made.plugins() if each["Moorage"]["State"] == "ready"]
        return sorted(each["Config"]["Description"] for each in found)

    def update_state(self) -> str:
        return docker(
            self.manager,
            "service",
            "inspect",
            "-f",
            "{{if .UpdateStatus}}{{.UpdateStatus.State}}{{end}}",
            "moorage_apply",
        ).strip()

    def is_up(self) -> bool:
        """Whether a task runs on each node; one whose health check has not passed yet is starting."""
        tasks = docker(
            self.manager,
            "service",
            "ps",
            "-f",
            "desired-state=running",
            "--format",
            "{{.CurrentState}}",
            "moorage_apply",
        )
        return [line.split()[0] for line in tasks.splitlines()] == ["Running"] * 3


@pytest.fixture
def swarm(registry: Served, tmp_path: Path) -> Iterator[Swarm]:
    is_made = not RUN.exists()
    RUN.mkdir(exist_ok=True)
    with ExitStack() as stack:
        if is_made:
            stack.callback(RUN.rmdir)
        engines = []
        for number in NODES:
            (tmp_path / f"engine{number}").mkdir()
            engines.append(stack.enter_context(engine(tmp_path / f"engine{number}")))
        for tag, arguments in (("1", ()), ("2", ()), ("bad", ("end=3",))):
            push_version(engines[0], f"{registry.host}/t/f:{tag}", *arguments, description=tag)
        names = stack.enter_context(networks(f"sw{os.getpid() % 10**5}n"))
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sw")))  # paths of sockets are limited
        nodes = [stack.enter_context(node(name, short / name, made)) for name, made in zip(names, engines, strict=True)]
        for each in nodes:
            change = ["--change", f"ENV PATH=/opt/bin:{os.defpath}", "--change", 'ENTRYPOINT ["moorage"]']
            docker(each, "import", *change, "-", "moorage:test", stdin=image())
        docker(nodes[0], "swarm", "init", "--advertise-addr=10.77.0.1")
        token = docker(nodes[0], "swarm", "join-token", "-q", "worker").strip()
        for each in nodes[1:]:
            docker(each, "swarm", "join", "--token", token, "10.77.0.1:2377")
        stack.callback(docker, nodes[0], "stack", "rm", "moorage")
        yield Swarm(nodes[0], engines, registry, tmp_path)


def test_f07_a_global_service_applies_node_by_node_and_pauses_at_a_broken_plugin(swarm: Swarm) -> None:
    swarm.deploy("1", "1")
    wait_until(lambda: swarm.versions() == ["1", "1", "1"] and swarm.is_up(), "version 1 everywhere", WITHIN)
    assert swarm.type(SHOW).count("moorage_apply") == 3
    pids = {made.more("p")["Pid"] for made in swarm.engines}
    swarm.deploy("2", "bad")
    wait_until(lambda: swarm.update_state() == "paused", "the update pauses", WITHIN)
    assert swarm.versions() == ["1", "1", "1"]
    assert len(pids & {made.more("p")["Pid"] for made in swarm.engines}) == 2, "only the first node has tried"
    swarm.deploy("3", "2")
    wait_until(lambda: swarm.versions() == ["2", "2", "2"] and swarm.is_up(), "version 2 everywhere", WITHIN)
