"""Each config of configs/ on a real dockerd and with us: the same OCI spec and the same view from inside.

What differs on purpose is DIFFERENCES, by the names of the table in docs/reference/oci-spec.md.
"""

import copy
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moorage import errors
from moorage.host.cgroups import CgroupLayout, cgroup_layout
from moorage.plugins import (
    BUILT_IN,
    NO_OVERRIDES,
    Config,
    Settings,
    apply_settings,
    effective_settings,
    needs,
    parse_config,
)
from moorage.plugins.apparmor import profile_for
from moorage.plugins.confinement import RLIMITS
from moorage.plugins.seccomp import Caller, build_filter
from moorage.runs.host_security import HostSecurity
from peers.dockerd import Dockerd, Refused
from peers.probe_plugin import HERE, HOST, Spec, View, Workshop, on_dockerd, point_of, with_us, without_points
from support.workspace import Workspace

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "static-cc")]

CONFIGS = sorted(each.stem for each in (HERE / "configs").glob("*.json"))
TABLE = HERE.parents[1] / "docs" / "reference" / "oci-spec.md"
POWERCAP = "/sys/devices/virtual/powercap"
CONFINED = {"NoNewPrivs": "NoNewPrivs:\t1", "Seccomp": "Seccomp:\t2", "Seccomp_filters": "Seccomp_filters:\t1"}
"""What a process sees of the filter and of no_new_privs."""


ASSIGNMENTS: dict[str, tuple[str, ...]] = {
    "args-by-a-name-with-a-dash": ("opa-args=-set one",),
    "env-names": ("http-proxy=k=v==",),
    "env-null-empty-and-twice": ("ABSENT",),
    "mount-sources-set": (f"state.source={HOST}/two", f"log-dir.source={HOST}/log", "control.path=/dev/loop-control"),
    "device": ("control=/dev/full",),
}
"""What is set before the plugin is enabled, as text that both understand."""

MOORAGE_ONLY = {"mount-sources-set": (f"needed.source={HOST}/one",)}
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


def mounts_below_dev_stay(spec: Spec, case: Case) -> None:
    requested = [
        {"destination": each.destination, "type": each.type, "source": each.source, "options": list(each.options)}
        for each in case.settings.mounts
    ]
    taken = [each["destination"] for each in requested if str(each["destination"]).startswith("/dev/")]
    if taken:
        rest = [each for each in spec["mounts"] if each not in requested and each["destination"] not in taken]
        first = [each["destination"] for each in rest].index("/run/docker/plugins")
        spec["mounts"] = [*rest[:first], *requested, *rest[first:]]


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
    for kind, capability_names in sets.items():
        sets[kind] = list(dict.fromkeys(capability_names))


def seccomp_filter(spec: Spec, case: Case) -> None:
    capability_names = frozenset(spec["process"]["capabilities"]["bounding"])
    host = HostSecurity().features()
    caller = Caller(capability_names, host.architecture, host.kernel, case.config.pid_host)
    spec["linux"]["seccomp"] = json.loads(json.dumps(build_filter(caller, host.seccomp_profile)))


def apparmor_profile(spec: Spec, case: Case) -> None:
    if profile := HostSecurity().features(profile_for(case.config, case.settings)).apparmor_profile:
        spec["process"]["apparmorProfile"] = profile


def no_new_privileges(spec: Spec, _: Case) -> None:
    spec["process"]["noNewPrivileges"] = True


def limits_defined(spec: Spec, _: Case) -> None:
    bounds = HostSecurity().rlimit_bounds()
    unlimited = (1 << 64) - 1
    rlimits = []
    for name in RLIMITS:
        values = [unlimited if each == -1 else each for each in BUILT_IN.rlimits[name]]
        bound = bounds.get(name, -1)
        soft, hard = (min(each, unlimited if bound == -1 else bound) for each in values)
        rlimits.append({"type": f"RLIMIT_{name.upper()}", "soft": soft, "hard": hard})
    spec["process"] |= {"rlimits": rlimits, "oomScoreAdj": 0, "scheduler": {"policy": "SCHED_OTHER", "nice": 0}}
    spec["linux"]["resources"]["pids"] = {"limit": 2048}


def host_cgroups_bound(spec: Spec, _: Case) -> None:
    if cgroup_layout().layout is CgroupLayout.V2:
        for mount in spec["mounts"]:
            if mount["type"] == "cgroup":
                mount |= {"type": "bind", "source": "/sys/fs/cgroup", "options": ["rbind", *mount["options"]]}


DIFFERENCES: dict[str, Callable[[Spec, Case], None]] = {
    "own-cgroup": own_cgroup,
    "powercap-masked": powercap_masked,
    "user-honoured": user_honoured,
    "mounts-below-dev-kept": mounts_below_dev_stay,
    "empty-source-off": empty_source_off,
    "no-name-files-without-network": no_name_files_without_network,
    "env-once": env_once,
    "env-in-config-order": env_in_config_order,
    "capabilities-once": capabilities_once,
    "seccomp-filter": seccomp_filter,
    "no-new-privileges": no_new_privileges,
    "apparmor-profile": apparmor_profile,
    "limits-defined": limits_defined,
    "host-cgroups-bound": host_cgroups_bound,
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
    "seccomp-filter": "minimal",
    "no-new-privileges": "minimal",
    "apparmor-profile": "minimal",
    "limits-defined": "minimal",
    "host-cgroups-bound": "minimal",
}
"""For each difference a config whose spec would differ from Moorage's without it."""


# --- the comparison


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    with tempfile.TemporaryDirectory(prefix="m-probe-", dir="/var/tmp") as directory:
        made = Workshop(Path(directory))
        yield made
        made.close()


def unlike(docker: Any, own: Any, path: str = "") -> list[str]:
    """Every field in which two values differ, by its path."""
    if isinstance(docker, dict) and isinstance(own, dict):
        keys = dict.fromkeys([*docker, *own])
        return [line for key in keys for line in unlike(docker.get(key), own.get(key), f"{path}.{key}")]
    if isinstance(docker, list) and isinstance(own, list) and len(docker) == len(own):
        pairs = enumerate(zip(docker, own, strict=True))
        return [line for index, pair in pairs for line in unlike(*pair, f"{path}[{index}]")]
    return [] if docker == own else [f"{path}: dockerd {docker}, we {own}"]


@pytest.fixture
def case(workshop: Workshop, name: str) -> tuple[str, Case]:
    raw = workshop.fill((HERE / "configs" / f"{name}.json").read_text())
    config = parse_config(raw.encode()).config
    assignments = [workshop.fill(each) for each in ASSIGNMENTS.get(name, ()) + MOORAGE_ONLY.get(name, ())]
    overrides = apply_settings(config, NO_OVERRIDES, assignments)
    return raw, Case(config, effective_settings(config, overrides))


def expected_spec(docker: Spec, case: Case, *, without: str = "") -> Spec:
    made = copy.deepcopy(docker)
    for name, apply in DIFFERENCES.items():
        if name != without:
            apply(made, case)
    return made


@pytest.mark.sampled(12)
@pytest.mark.anyio
@pytest.mark.parametrize("name", CONFIGS)
async def test_c08_the_same_spec_and_the_same_view_as_with_dockerd(
    name: str, case: tuple[str, Case], dockerd: Dockerd, workspace: Workspace, workshop: Workshop
) -> None:
    raw, made = case
    for default in MOORAGE_ONLY.get(name, ()):
        raw = with_default(raw, workshop.fill(default))
    assignments = [workshop.fill(each) for each in ASSIGNMENTS.get(name, ())]
    before = host_devices()
    docker = on_dockerd(dockerd, workshop, name, raw, made.config, assignments)
    own = await with_us(workspace, workshop, made.config, made.settings)
    if any(each.destination == "/dev" for each in made.config.mounts):
        lasting = before & host_devices()  # other tests have terminals, podman and loop devices meanwhile
        for one in (docker, own):
            one.view["device"] = [each for each in one.view["device"] if point_of(each) in lasting]
    assert unlike(expected_spec(docker.spec, made), own.spec) == []
    for difference in (each for each, witness in WITNESSES.items() if witness == name):
        if difference == "powercap-masked" and POWERCAP in docker.spec["linux"]["maskedPaths"]:
            continue  # a later dockerd, which does as we do
        if difference == "apparmor-profile" and not HostSecurity().has_apparmor():
            continue
        if difference == "host-cgroups-bound" and cgroup_layout().layout is not CgroupLayout.V2:
            continue
        assert unlike(expected_spec(docker.spec, made, without=difference), own.spec) != []
    hidden = points_that_differ(docker.spec, own.spec) | {POWERCAP}
    if made.config.user.uid:
        assert_the_user_is_honoured(own.view, made.config)
        for kind in ("status", "rule", "open"):
            docker.view.pop(kind)
            own.view.pop(kind)
            docker.view[kind] = own.view[kind] = []
    confined = [each for each in docker.view["status"] if each.split(":")[0] not in CONFINED] + list(CONFINED.values())
    docker.view["status"] = sorted(confined) if own.view["status"] else []
    own.view["status"].sort()
    docker.view["oom"] = ["0"]  # 1 for dockerd's, as its shim has it
    docker.view["limit"] = own.view["limit"]  # Moorage's are compared in tests/attacks, dockerd's are its starter's
    assert unlike(without_points(docker.view, hidden), without_points(own.view, hidden)) == []
    there = {point_of(each) for each in own.view["mount"]}
    assert {each["destination"] for each in own.spec["mounts"]} <= there


def host_devices() -> set[str]:
    """What is in the first two levels of the host's /dev, as the probe says them."""
    return {str(each) for pattern in ("*", "*/*") for each in Path("/dev").glob(pattern)}


def with_default(raw: str, assignment: str) -> str:
    """A document in which a mount's source is what we set."""
    document = json.loads(raw)
    name, _, value = assignment.partition(".source=")
    next(each for each in document["mounts"] if each.get("name") == name)["source"] = value
    return json.dumps(document)


def points_that_differ(docker: Spec, own: Spec) -> set[str]:
    """Where the two specs do not mount the same."""

    def at(spec: Spec, point: str) -> list[Any]:
        return [each for each in spec["mounts"] if each["destination"] == point]

    points = {each["destination"] for each in docker["mounts"] + own["mounts"]}
    return {point for point in points if at(docker, point) != at(own, point)}


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


@pytest.mark.anyio
async def test_case_080_every_device_can_be_made_and_opened_in_a_cgroup_of_the_plugins_own(
    workspace: Workspace, workshop: Workshop
) -> None:
    _, config = probe_config(workshop, linux={"allowAllDevices": True})
    own = await with_us(workspace, workshop, config, effective_settings(config, NO_OVERRIDES))
    assert [each for each in own.view["rule"] if " made" not in each] == []
    assert "c 1:7 made open" in own.view["rule"]
    groups = [each.split(":", 2)[2] for each in own.view["cgroup"]]
    assert groups
    assert set(groups) == {workspace.cgroup("probe")}


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
    name: str, fields: dict[str, Any], dockerd: Dockerd, workspace: Workspace, workshop: Workshop
) -> None:
    raw, config = probe_config(workshop, **fields)
    try:
        docker = on_dockerd(dockerd, workshop, name, raw, config).view["status"]
    except Refused as refused:
        docker = [refused.message]
    own = await with_us(workspace, workshop, config, effective_settings(config, NO_OVERRIDES))
    assert own.view["status"] != docker


def test_c06_case_048_a_source_that_is_null_is_refused_by_both(dockerd: Dockerd, workshop: Workshop) -> None:
    mounts = [{"name": "m", "destination": "/d", "type": "bind", "options": ["rbind"], "settable": ["source"]}]
    raw, config = probe_config(workshop, mounts=mounts)
    with pytest.raises(Refused, match="mount source"):
        on_dockerd(dockerd, workshop, "null-source", raw, config)
    with pytest.raises(errors.Invalid, match=r"set m\.source="):
        needs(effective_settings(config, NO_OVERRIDES))
