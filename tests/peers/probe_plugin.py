"""A probe plugin on a real dockerd and on Moorage: what its runc got and what the process saw, made comparable."""

import copy
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import anyio

from moorage.host.cgroups import CgroupLayout, cgroup_layout
from moorage.plugins import (
    BUILT_IN,
    Config,
    HostPaths,
    Settings,
    confined_spec,
    needs,
    socket_path,
)
from moorage.plugins.apparmor import profile_for
from moorage.runs.devices import resolve_devices
from moorage.runs.host_security import HostSecurity
from peers.dockerd import SOCKETS, Dockerd
from support import leftovers
from support.conditions import eventually
from support.limits import limit
from support.sinks import Exits, Memory
from support.workspace import Workspace

HERE = Path(__file__).parent
HOST = "@HOST@"
"""What a config says for the workshop's host directory."""

Spec = dict[str, Any]
View = dict[str, list[str]]


@dataclass(frozen=True)
class Side:
    """What one engine made of a config: the spec that its runc got, and what the plugin saw."""

    spec: Spec
    view: View


class Workshop:
    """Root file systems with the probe, and a host's directory for configs to mount."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host = directory / "host"
        self._numbers = count(1)
        self.probe = directory / "probe"
        subprocess.run(["gcc", "-static", "-O1", "-o", self.probe, HERE / "probe.c"], check=True)
        for name in ("one", "two", "log", "shm", "queue", "devices/inner"):
            (self.host / name).mkdir(parents=True)
        (self.host / "file").write_text("a file\n")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(self.host / "host.sock"))
        for name, minor in (("devices/full", 7), ("devices/inner/zero", 5)):
            os.mknod(self.host / name, stat.S_IFCHR | 0o640, os.makedev(1, minor))
        (self.host / "devices/link").symlink_to("full")
        (self.host / "linked").symlink_to("devices/full")
        (self.host / "with-fifo").mkdir()
        os.mknod(self.host / "with-fifo/full", stat.S_IFCHR | 0o640, os.makedev(1, 7))
        os.mkfifo(self.host / "with-fifo/fifo")

    def fill(self, text: str) -> str:
        return text.replace(HOST, str(self.host))

    def make_rootfs(self, config: Config) -> Path:
        rootfs = self.directory / f"r{next(self._numbers)}"
        rootfs.mkdir()
        shutil.copy(self.probe, rootfs / "probe")
        (rootfs / "probe.socket").write_text(str(SOCKETS / config.interface.socket))
        return rootfs

    def close(self) -> None:
        self.socket.close()


def read_view(path: Path) -> View:
    view: View = {}
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(limit(20))
        peer.connect(str(path))
        with peer.makefile(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                kind, _, value = line.removesuffix("\n").partition(" ")
                view.setdefault(kind, []).append(value)
    assert "end" in view, view
    return view


def on_dockerd(
    dockerd: Dockerd, workshop: Workshop, name: str, raw: str, config: Config, assignments: Sequence[str] = ()
) -> Side:
    """Create, set and enable a plugin, inspect it, remove it. Raises: Refused."""
    plugin = f"probe/{name}:1"
    rootfs = workshop.make_rootfs(config)
    dockerd.create_plugin(plugin, raw.encode(), rootfs)
    try:
        if assignments:
            dockerd.set_plugin(plugin, assignments)
        dockerd.enable_plugin(plugin)
        id = dockerd.inspect_plugin(plugin)["Id"]
        own = dockerd.data / "plugins" / id
        names = {own / "propagated-mount": "PROPAGATED", own / "rootfs": "ROOT", SOCKETS / id: "SOCKETS"}
        spec, view = dockerd.spec_of(id), read_view(SOCKETS / id / config.interface.socket)
        return Side(plain_spec(spec, names), plain_view(view, names))
    finally:
        dockerd.remove_plugin(plugin)
        shutil.rmtree(rootfs)


@contextmanager
def paths_for(workspace: Workspace, workshop: Workshop, config: Config, settings: Settings) -> Iterator[HostPaths]:
    rootfs = workshop.make_rootfs(config)
    paths = HostPaths(
        rootfs=str(rootfs),
        socket_directory=str(rootfs.with_suffix(".s")),
        cgroup_path=workspace.cgroup("probe"),
        propagated_mount=str(rootfs.with_suffix(".p")),
        devices=resolve_devices(each.path for each in needs(settings).devices),
        has_cgroup_v2=cgroup_layout().layout is CgroupLayout.V2,
    )
    own = [paths.socket_directory, str(paths.propagated_mount)]
    for directory in own:
        os.mkdir(directory)
        os.chown(directory, config.user.uid, config.user.gid)
    try:
        yield paths
    finally:
        for point in reversed(leftovers.mounts_below(*map(Path, own))):  # what the plugin's mounts added to the host
            subprocess.run(["umount", point], check=True)
        for directory in (*own, paths.rootfs):
            shutil.rmtree(directory)


async def with_us(workspace: Workspace, workshop: Workshop, config: Config, settings: Settings) -> Side:
    """Run a plugin by the executor, inspect it, stop it."""
    exits, output = Exits(), Memory()
    with paths_for(workspace, workshop, config, settings) as paths:
        host = HostSecurity().features(profile_for(config, settings))
        spec = confined_spec(config, settings, paths, BUILT_IN, host)
        async with workspace.executor(exits) as executor:
            await executor.create("probe", spec, output, output)
            try:
                view = await view_when_ready(Path(socket_path(config, paths)), exits, output)
            finally:
                if not exits.seen:
                    await executor.signal("probe", signal.SIGKILL)
                await eventually(lambda: exits.seen)
    names = {
        Path(str(paths.propagated_mount)): "PROPAGATED",
        Path(paths.rootfs): "ROOT",
        Path(paths.socket_directory): "SOCKETS",
        Path(paths.cgroup_path): "CGROUP",
    }
    return Side(plain_spec(spec, names), plain_view(view, names))


async def view_when_ready(path: Path, exits: Exits, output: Memory) -> View:
    def accepts() -> bool:
        assert not exits.seen, f"the probe ended with {exits.seen}: {output.text}"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    await eventually(accepts)
    return await anyio.to_thread.run_sync(read_view, path)


def plain_spec(spec: Spec, names: dict[Path, str]) -> Spec:
    """Without what only this run has: directories by name, empty lists always there, no version of the schema."""
    text = json.dumps(spec)
    for path, name in names.items():
        text = text.replace(f'"{path}"', f'"{name}"')
    made = json.loads(text)
    assert isinstance(made, dict)
    made.pop("ociVersion")
    made["process"]["capabilities"].setdefault("inheritable", [])
    made["linux"].setdefault("devices", [])
    made["linux"].setdefault("rootfsPropagation", "")
    return made


def plain_view(view: View, names: dict[Path, str]) -> View:
    made = copy.deepcopy(view)
    made["mount"] = [plain_mount(each, names) for each in view["mount"] if not is_foreign(each)]
    made["environment"] = sorted(view["environment"])  # their order is the spec's
    made["namespace"] = [plain_namespace(each) for each in view["namespace"]]
    for kind in ("hosts", "resolv"):  # empty ones are among the files that dockerd lays into every root
        if view.get(kind) == ["No such file or directory"]:
            del made[kind]
    return made


def point_of(line: str) -> str:
    """Where something is mounted, or which device it is: the first word."""
    return line.split(" ")[0]


def without_points(view: View, points: set[str]) -> View:
    """A view without what the two specs mount differently, and what is seen through it."""
    files = {"hosts": "/etc/hosts", "resolv": "/etc/resolv.conf"}
    made = {kind: lines for kind, lines in view.items() if files.get(kind) not in points and kind != "cgroup"}
    for kind in ("mount", "device", "open"):
        made[kind] = [each for each in view[kind] if not is_below(point_of(each), points)]
    return made


def is_below(path: str, points: set[str]) -> bool:
    return any(f"{path}/".startswith(f"{point}/") for point in points)


def plain_mount(line: str, names: dict[Path, str]) -> str:
    """Mount point, contents, options, without numbers; of our own directories whether mounts go out, not their disk.

    Whether other mounts are shared is left out: that follows from the machine's own, and from what is a mount there.
    """
    before, _, after = line.partition(" - ")
    _, _, _, root, point, options, *propagation = before.split(" ")
    kind, source, more = after.split(" ", 2)
    if kind.startswith("cgroup"):
        root = "own"
    for path, name in names.items():
        # a machine's root may itself be a directory of a disk, as in scripts/fresh
        if root not in ("/", "own") and (str(path).endswith(root) or root.endswith(str(path))):
            is_shared = any(each.startswith("shared:") for each in propagation)
            return f"{point} {name} {'shared' if is_shared and name != 'ROOT' else ''}"
    return f"{point} {root} {options} {kind} {source} {more}"


def is_foreign(line: str) -> bool:
    """Below a bind of the host's whole tree: what else runs on the machine just then."""
    return line.split(" ")[4].startswith("/host/")


def plain_namespace(line: str) -> str:
    name, _, target = line.partition(" ")
    return f"{name} {'host' if os.readlink(f'/proc/self/ns/{name}') == target else 'own'}"
