"""Each config of configs/ on a real dockerd and with us: the same OCI spec and the same view from inside.

What differs on purpose is DIFFERENCES, by the names of the table in docs/reference/oci-spec.md.
"""

import copy
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from moorage import errors
from moorage.engine.devices import resolve_devices
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    Places,
    Settings,
    apply_settings,
    build_spec,
    effective_settings,
    needs,
    parse_config,
    socket_path,
)
from peers.dockerd import SOCKETS, Dockerd, Refused
from support.places import Place
from support.sinks import Exits, Memory
from support.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc")]

HERE = Path(__file__).parent
CONFIGS = sorted(each.stem for each in (HERE / "configs").glob("*.json"))
TABLE = HERE.parents[1] / "docs" / "reference" / "oci-spec.md"
POWERCAP = "/sys/devices/virtual/powercap"
HOST = "@HOST@"

Spec = dict[str, Any]
View = dict[str, list[str]]

ASSIGNMENTS: dict[str, tuple[str, ...]] = {
    "args-by-a-name-with-a-dash": ("opa-args=-set one",),
    "env-names": ("http-proxy=k=v==",),
    "env-null-empty-and-twice": ("ABSENT",),
    "mount-sources-set": (f"state.source={HOST}/two", f"log-dir.source={HOST}/log", "control.path=/dev/loop-control"),
    "device": ("control=/dev/full",),
}
"""What is set before the plugin is enabled, in words that both understand."""

OURS_ONLY = {"mount-sources-set": (f"needed.source={HOST}/one",)}
"""What only we can set: dockerd has no way to give a source that is null. Its config gets it as a default."""


# --- the differences that are meant: what each does to the spec that dockerd made


@dataclass(frozen=True)
class Case:
    config: Config
    settings: Settings


def own_cgroup(spec: Spec, _: Case) -> None:
    spec["linux"]["cgroupsPath"] = "CGROUP"


def powercap_masked(spec: Spec, _: Case) -> None:
    paths = spec["linux"]["maskedPaths"]
    spec["linux"]["maskedPaths"] = [each for each in paths if each != POWERCAP] + [POWERCAP]


def user_honoured(spec: Spec, case: Case) -> None:
    user = case.config.user
    spec["process"]["user"] = {"uid": user.uid, "gid": user.gid}
    if user.uid:
        spec["process"]["capabilities"]["ambient"] = list(case.config.linux.capabilities)


def mounts_below_dev_kept(spec: Spec, case: Case) -> None:
    asked = [
        {"destination": each.destination, "type": each.type, "source": each.source, "options": list(each.options)}
        for each in case.settings.mounts
    ]
    taken = [each["destination"] for each in asked if str(each["destination"]).startswith("/dev/")]
    if taken:
        rest = [each for each in spec["mounts"] if each not in asked and each["destination"] not in taken]
        first = [each["destination"] for each in rest].index("/run/docker/plugins")
        spec["mounts"] = [*rest[:first], *asked, *rest[first:]]


def empty_source_off(spec: Spec, case: Case) -> None:
    off = {each.destination for each in case.settings.mounts if not each.source}
    spec["mounts"] = [each for each in spec["mounts"] if each["destination"] not in off]


def no_name_files_without_network(spec: Spec, case: Case) -> None:
    if not case.config.network.is_host:
        files = ("/etc/hosts", "/etc/resolv.conf")
        spec["mounts"] = [each for each in spec["mounts"] if each["destination"] not in files]


def env_once(spec: Spec, _: Case) -> None:
    values = dict(each.split("=", 1) for each in spec["process"]["env"])
    spec["process"]["env"] = [f"{name}={value}" for name, value in values.items()]


def env_in_config_order(spec: Spec, case: Case) -> None:
    names = ["PATH", *(each.name for each in case.config.env)]
    spec["process"]["env"].sort(key=lambda each: names.index(each.split("=", 1)[0]))


def capabilities_once(spec: Spec, _: Case) -> None:
    sets = spec["process"]["capabilities"]
    for kind, held in sets.items():
        sets[kind] = list(dict.fromkeys(held))


DIFFERENCES: dict[str, Callable[[Spec, Case], None]] = {
    "own-cgroup": own_cgroup,
    "powercap-masked": powercap_masked,
    "user-honoured": user_honoured,
    "mounts-below-dev-kept": mounts_below_dev_kept,
    "empty-source-off": empty_source_off,
    "no-name-files-without-network": no_name_files_without_network,
    "env-once": env_once,
    "env-in-config-order": env_in_config_order,
    "capabilities-once": capabilities_once,
}

WITNESSES = {
    "own-cgroup": "minimal",
    "powercap-masked": "minimal",
    "user-honoured": "user",
    "mounts-below-dev-kept": "mounts-below-dev",
    "empty-source-off": "empty-source",
    "no-name-files-without-network": "network-none",
    "env-once": "env-path",
    "env-in-config-order": "env-null-empty-and-twice",
    "capabilities-once": "capabilities",
}
"""For each difference a config whose spec would not be ours without it."""


# --- the two sides


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


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    with tempfile.TemporaryDirectory(prefix="m-probe-", dir="/tmp") as directory:
        made = Workshop(Path(directory))
        yield made
        made.close()


def read_view(path: Path) -> View:
    view: View = {}
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(str(path))
        with peer.makefile(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            for line in lines:
                kind, _, value = line.removesuffix("\n").partition(" ")
                view.setdefault(kind, []).append(value)
    assert "end" in view, view
    return view


def on_dockerd(dockerd: Dockerd, workshop: Workshop, name: str, raw: str, config: Config) -> Side:
    plugin = f"probe/{name}:1"
    rootfs = workshop.make_rootfs(config)
    document = json.loads(raw)
    for assignment in OURS_ONLY.get(name, ()):
        key, _, value = workshop.fill(assignment).partition(".source=")
        next(each for each in document["mounts"] if each.get("name") == key)["source"] = value
    dockerd.create_plugin(plugin, json.dumps(document).encode(), rootfs)
    try:
        if assignments := [workshop.fill(each) for each in ASSIGNMENTS.get(name, ())]:
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
def mounted(rootfs: Path) -> Iterator[None]:
    """A root that is a mount, as the engine's is: what propagates depends on it."""
    subprocess.run(["mount", "--bind", rootfs, rootfs], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", rootfs], check=True)


@contextmanager
def places_for(place: Place, workshop: Workshop, config: Config, settings: Settings) -> Iterator[Places]:
    rootfs = workshop.make_rootfs(config)
    places = Places(
        rootfs=str(rootfs),
        socket_directory=str(rootfs.with_suffix(".s")),
        cgroup_path=place.cgroup("probe"),
        propagated_mount=str(rootfs.with_suffix(".p")),
        devices=resolve_devices(each.path for each in needs(settings).devices),
    )
    own = [places.socket_directory, str(places.propagated_mount)]
    for directory in own:
        os.mkdir(directory)
        os.chown(directory, config.user.uid, config.user.gid)
    try:
        with mounted(rootfs):
            yield places
    finally:
        for directory in (*own, places.rootfs):
            shutil.rmtree(directory)


async def with_us(place: Place, workshop: Workshop, config: Config, settings: Settings) -> Side:
    exits, output = Exits(), Memory()
    with places_for(place, workshop, config, settings) as places:
        spec = build_spec(config, settings, places)
        async with place.executor(exits) as executor:
            await executor.create("probe", spec, output, output)
            try:
                view = await view_when_ready(Path(socket_path(config, places)), exits, output)
            finally:
                if not exits.seen:
                    await executor.signal("probe", signal.SIGKILL)
                await eventually(lambda: exits.seen)
    names = {
        Path(str(places.propagated_mount)): "PROPAGATED",
        Path(places.rootfs): "ROOT",
        Path(places.socket_directory): "SOCKETS",
        Path(places.cgroup_path): "CGROUP",
    }
    return Side(plain_spec(spec, names), plain_view(view, names))


async def view_when_ready(path: Path, exits: Exits, output: Memory) -> View:
    def accepts() -> bool:
        assert not exits.seen, f"the probe ended with {exits.seen}: {output.text}"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    await eventually(accepts)
    return await anyio.to_thread.run_sync(read_view, path)


# --- making the two comparable


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
    made["mount"] = [plain_mount(each, names) for each in view["mount"] if not is_somebody_elses(each)]
    made["environment"] = sorted(view["environment"])  # their order is the spec's
    made["namespace"] = [plain_namespace(each) for each in view["namespace"]]
    for kind in ("hosts", "resolv"):  # empty ones are among the files that dockerd lays into every root
        if view.get(kind) == ["No such file or directory"]:
            del made[kind]
    del made["cgroup"]  # by design another one; that it is the one of the spec is test_c08's matter
    return made


def point_of(line: str) -> str:
    """Where something is mounted, or which device it is: the first word."""
    return line.split(" ")[0]


def without_points(view: View, points: set[str]) -> View:
    """A view without what the two specs mount differently, and what is seen through it."""
    files = {"hosts": "/etc/hosts", "resolv": "/etc/resolv.conf"}
    made = {kind: lines for kind, lines in view.items() if files.get(kind) not in points}
    for kind in ("mount", "device", "open"):
        made[kind] = [each for each in view[kind] if not is_below(point_of(each), points)]
    return made


def is_below(path: str, points: set[str]) -> bool:
    return any(f"{path}/".startswith(f"{point}/") for point in points)


def plain_mount(line: str, names: dict[Path, str]) -> str:
    """Point, what is there, options, whether mounts go out: no numbers, and nothing of the disk below our directories.

    Whether mounts come in (``master``) is left out: it says how the machine's own mounts are set up.
    """
    before, _, after = line.partition(" - ")
    _, _, _, root, point, options, *propagation = before.split(" ")
    shared = "shared" if any(each.startswith("shared:") for each in propagation) else "-"
    kind, source, more = after.split(" ", 2)
    if kind.startswith("cgroup"):
        root = "own"
    for path, name in names.items():
        if root not in ("/", "own") and str(path).endswith(root):
            return f"{point} {name} {shared}"
    return f"{point} {root} {options} {shared} {kind} {source} {more}"


def is_somebody_elses(line: str) -> bool:
    """Below a bind of the host's whole tree: what else runs on the machine just then."""
    return line.split(" ")[4].startswith("/host/")


def plain_namespace(line: str) -> str:
    name, _, target = line.partition(" ")
    return f"{name} {'host' if os.readlink(f'/proc/self/ns/{name}') == target else 'own'}"


# --- the comparison


def unlike(docker: Any, ours: Any, path: str = "") -> list[str]:
    """Every field in which two values differ, by its path."""
    if isinstance(docker, dict) and isinstance(ours, dict):
        keys = dict.fromkeys([*docker, *ours])
        return [line for key in keys for line in unlike(docker.get(key), ours.get(key), f"{path}.{key}")]
    if isinstance(docker, list) and isinstance(ours, list) and len(docker) == len(ours):
        pairs = enumerate(zip(docker, ours, strict=True))
        return [line for index, pair in pairs for line in unlike(*pair, f"{path}[{index}]")]
    return [] if docker == ours else [f"{path}: dockerd {docker}, we {ours}"]


@pytest.fixture
def case(workshop: Workshop, name: str) -> tuple[str, Case]:
    raw = workshop.fill((HERE / "configs" / f"{name}.json").read_text())
    config = parse_config(raw.encode()).config
    assignments = [workshop.fill(each) for each in ASSIGNMENTS.get(name, ()) + OURS_ONLY.get(name, ())]
    overrides = apply_settings(config, NO_OVERRIDES, assignments)
    return raw, Case(config, effective_settings(config, overrides))


def expected_spec(docker: Spec, case: Case, *, without: str = "") -> Spec:
    made = copy.deepcopy(docker)
    for name, apply in DIFFERENCES.items():
        if name != without:
            apply(made, case)
    return made


@pytest.mark.anyio
@pytest.mark.parametrize("name", CONFIGS)
async def test_c08_the_same_spec_and_the_same_view_as_with_dockerd(
    name: str, case: tuple[str, Case], dockerd: Dockerd, place: Place, workshop: Workshop
) -> None:
    raw, made = case
    docker = on_dockerd(dockerd, workshop, name, raw, made.config)
    ours = await with_us(place, workshop, made.config, made.settings)
    assert unlike(expected_spec(docker.spec, made), ours.spec) == []
    for difference in (each for each, witness in WITNESSES.items() if witness == name):
        assert unlike(expected_spec(docker.spec, made, without=difference), ours.spec) != []
    hidden = points_that_differ(docker.spec, ours.spec) | {POWERCAP}
    if made.config.user.uid:
        assert_the_user_is_honoured(ours.view, made.config)
        for kind in ("status", "rule", "open"):
            docker.view.pop(kind)
            ours.view.pop(kind)
            docker.view[kind] = ours.view[kind] = []
    assert unlike(without_points(docker.view, hidden), without_points(ours.view, hidden)) == []
    there = {point_of(each) for each in ours.view["mount"]}
    assert {each["destination"] for each in ours.spec["mounts"]} <= there


def points_that_differ(docker: Spec, ours: Spec) -> set[str]:
    """Where the two specs do not mount the same."""

    def at(spec: Spec, point: str) -> list[Any]:
        return [each for each in spec["mounts"] if each["destination"] == point]

    points = {each["destination"] for each in docker["mounts"] + ours["mounts"]}
    return {point for point in points if at(docker, point) != at(ours, point)}


def assert_the_user_is_honoured(view: View, config: Config) -> None:
    status = dict(each.split(":\t") for each in view["status"])
    assert status["Uid"].split("\t") == [str(config.user.uid)] * 4
    assert status["Gid"].split("\t") == [str(config.user.gid)] * 4
    assert (status["CapEff"], status["CapAmb"]) == ("0000000000001000", "0000000000001000")  # net_admin


def test_c08_every_difference_is_in_the_one_table_of_the_docs() -> None:
    named = re.findall(r"^\| `([a-z-]+)` \|", TABLE.read_text(), re.MULTILINE)
    compared = [each for each in named if each in DIFFERENCES]
    assert sorted(compared) == sorted(DIFFERENCES) == sorted(WITNESSES)
    assert set(WITNESSES.values()) <= set(CONFIGS)
    assert len(named) == len(set(named))


# --- differences in what starts at all


def probe_config(workshop: Workshop, **fields: Any) -> tuple[str, Config]:
    raw = workshop.fill(json.dumps({"entrypoint": ["/probe"], "interface": {"socket": "p.sock"}} | fields))
    return raw, parse_config(raw.encode()).config


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("bind-without-option", {"mounts": [{"source": f"{HOST}/one", "destination": "/d", "type": "bind"}]}),
        ("fifo-among-devices", {"linux": {"devices": [{"path": f"{HOST}/with-fifo"}]}}),
        ("capability-spelling", {"linux": {"capabilities": ["sys_admin"]}}),
    ],
)
async def test_c08_what_dockerd_cannot_start_or_give_starts_with_us(
    name: str, fields: dict[str, Any], dockerd: Dockerd, place: Place, workshop: Workshop
) -> None:
    raw, config = probe_config(workshop, **fields)
    try:
        docker = on_dockerd(dockerd, workshop, name, raw, config).view["status"]
    except Refused as refused:
        docker = [refused.message]
    ours = await with_us(place, workshop, config, effective_settings(config, NO_OVERRIDES))
    assert ours.view["status"] != docker


def test_c06_case_048_a_source_that_is_null_is_refused_by_both(dockerd: Dockerd, workshop: Workshop) -> None:
    mounts = [{"name": "m", "destination": "/d", "type": "bind", "options": ["rbind"], "settable": ["source"]}]
    raw, config = probe_config(workshop, mounts=mounts)
    with pytest.raises(Refused, match="mount source"):
        on_dockerd(dockerd, workshop, "null-source", raw, config)
    with pytest.raises(errors.Invalid, match=r"set m\.source="):
        needs(effective_settings(config, NO_OVERRIDES))
