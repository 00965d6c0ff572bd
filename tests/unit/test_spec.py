import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from moorage import errors
from moorage.plugins import (
    NO_OVERRIDES,
    DeviceNode,
    HostPaths,
    apply_settings,
    build_spec,
    cgroup_path,
    compute_privileges,
    control_group,
    effective_settings,
    needs,
    parse_config,
    socket_path,
)
from moorage.plugins._base import CAPABILITIES, DEFAULT_CAPABILITIES, MOUNTS
from moorage.plugins.model import Config
from moorage.runs.devices import locked_flags, resolve_device, resolve_devices
from support.configs import parsed

pytestmark = pytest.mark.quick

briefly = settings(database=None, deadline=None, max_examples=100)
FUSE = DeviceNode("/dev/fuse", "c", 10, 229, 0o600, 0, 0)
PATHS = HostPaths(
    "/run/m/p/0/root", "/run/m/p/0/s", "/moorage/0", "/var/m/0/propagated-mount", devices={"/dev/fuse": (FUSE,)}
)
ON_V2 = replace(PATHS, has_cgroup_v2=True)
AFTER_BASE = len(MOUNTS)


def spec_of(config: Config, *assignments: str, paths: HostPaths = PATHS) -> Any:
    return build_spec(config, effective_settings(config, apply_settings(config, NO_OVERRIDES, assignments)), paths)


def built(**fields: Any) -> Any:
    return spec_of(parsed(**fields))


def destinations(spec: Any) -> list[str]:
    return [each["destination"] for each in spec["mounts"]]


def bind(destination: str, source: str | None = "/src", **fields: Any) -> dict[str, Any]:
    return {"destination": destination, "source": source, "type": "bind", "options": ["rbind"]} | fields


def test_c08_the_least_config_gets_mobys_default_container() -> None:
    spec = built()
    assert spec["process"] == {
        "user": {"uid": 0, "gid": 0},
        "args": ["/p"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": {
            "bounding": list(DEFAULT_CAPABILITIES),
            "effective": list(DEFAULT_CAPABILITIES),
            "permitted": list(DEFAULT_CAPABILITIES),
            "inheritable": [],
        },
    }
    assert spec["root"] == {"path": "/run/m/p/0/root"}
    assert destinations(spec) == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/mqueue",
        "/dev/shm",
        "/run/docker/plugins",
    ]
    assert [each["type"] for each in spec["linux"]["namespaces"]] == ["mount", "network", "uts", "pid", "ipc"]
    assert spec["linux"]["cgroupsPath"] == "/moorage/0"
    assert spec["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert not {"rootfsPropagation", "devices"} & spec["linux"].keys()
    assert "/proc/kcore" in spec["linux"]["maskedPaths"]
    assert "/proc/sys" in spec["linux"]["readonlyPaths"]


def test_c08_the_socket_directory_is_shared_both_ways() -> None:
    assert built()["mounts"][-1] == {
        "destination": "/run/docker/plugins",
        "type": "bind",
        "source": "/run/m/p/0/s",
        "options": ["rbind", "rshared"],
    }


def test_c08_a_propagated_mount_is_outside_the_rootfs_and_shared() -> None:
    spec = built(propagatedMount="/mnt/v")
    assert spec["mounts"][AFTER_BASE] == {
        "destination": "/mnt/v",
        "type": "bind",
        "source": "/var/m/0/propagated-mount",
        "options": ["rbind", "rw", "rshared"],
    }
    assert spec["linux"]["rootfsPropagation"] == "rshared"


def test_c08_a_propagated_mount_without_a_path_is_never_left_out() -> None:
    with pytest.raises(errors.MoorageError, match="no directory is given"):
        spec_of(parsed(propagatedMount="/mnt/v"), paths=replace(PATHS, propagated_mount=None))


def test_c08_mount_order_is_propagated_then_as_given_then_socket_then_network_files() -> None:
    spec = built(
        propagatedMount="/run/docker",
        network={"type": "host"},
        mounts=[bind("/run/docker/plugins/x"), bind("/b"), bind("/a"), bind("/b", "/other")],
    )
    assert destinations(spec)[AFTER_BASE:] == [
        "/run/docker",
        "/run/docker/plugins/x",
        "/b",
        "/a",
        "/b",
        "/run/docker/plugins",
        "/etc/hosts",
        "/etc/resolv.conf",
    ]
    assert [each["source"] for each in spec["mounts"] if each["destination"] == "/b"] == ["/src", "/other"]


@pytest.mark.parametrize(
    "destination", ["/dev/shm", "/dev/mqueue", "/dev/pts", "/dev/shm/", "//dev//shm", "/x/../dev/pts"]
)
def test_c08_a_mount_of_the_user_wins_over_a_default_one_below_dev(destination: str) -> None:
    spec = built(mounts=[bind(destination)])
    assert destinations(spec).count(destination) == 1
    cleaned = [os.path.normpath(each).replace("//", "/") for each in destinations(spec)]
    assert len(cleaned) == len(set(cleaned)) == AFTER_BASE + 1


@pytest.mark.parametrize("destination", ["/dev/fuse", "/dev", "/dev/shm/sub", "/devshm", "/proc", "/sys"])
def test_c08_other_mounts_of_the_user_remove_nothing(destination: str) -> None:
    assert destinations(built(mounts=[bind(destination)])) == [
        *(each.destination for each in MOUNTS),
        destination,
        "/run/docker/plugins",
    ]


def test_c08_config_mounts_go_through_as_given() -> None:
    spec = built(
        mounts=[bind("/a", type="none", options=["bind", "ro"]), bind("/t", "tmpfs", type="tmpfs", options=[])]
    )
    assert spec["mounts"][AFTER_BASE : AFTER_BASE + 2] == [
        {"destination": "/a", "type": "none", "source": "/src", "options": ["bind", "ro"]},
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs"},
    ]


def test_c08_a_bind_that_forgot_its_option_gets_it() -> None:
    assert built(mounts=[bind("/a", options=["ro"])])["mounts"][AFTER_BASE]["options"] == ["rbind", "ro"]


def test_c08_relative_paths_inside_are_below_the_root() -> None:
    spec = built(mounts=[bind("a/b")], workdir="w", propagatedMount="v")
    assert destinations(spec)[AFTER_BASE : AFTER_BASE + 2] == ["/v", "/a/b"]
    assert spec["process"]["cwd"] == "/w"


def test_c08_the_hosts_network_adds_its_name_files_read_only() -> None:
    spec = built(network={"type": "host"})
    assert spec["mounts"][-2:] == [
        {"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["rbind", "ro"]},
        {"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/resolv.conf", "options": ["rbind", "ro"]},
    ]
    paths = replace(PATHS, hosts=None, resolv_conf="/run/r")
    assert [each["source"] for each in spec_of(parsed(network={"type": "host"}), paths=paths)["mounts"]][-1] == "/run/r"


def test_c08_host_namespaces_are_dropped_as_requested() -> None:
    def namespaces(**fields: Any) -> set[str]:
        return {each["type"] for each in built(**fields)["linux"]["namespaces"]}

    everything = {"mount", "uts", "pid", "ipc", "network"}
    assert everything - namespaces(pidhost=True) == {"pid"}
    assert everything - namespaces(ipchost=True) == {"ipc"}
    assert everything - namespaces(network={"type": "host"}) == {"network"}


@pytest.mark.parametrize("kind", ["none", "null", "", "bridge"])
def test_case_079_isolated_types_have_a_network_namespace_and_no_name_files(kind: str) -> None:
    spec = built(network={"type": kind})
    assert {"type": "network"} in spec["linux"]["namespaces"]
    assert "/etc/hosts" not in destinations(spec)


def test_case_079_an_unknown_type_is_refused_at_enable_too() -> None:
    config = parsed()
    with pytest.raises(errors.Invalid, match="cannot set up network HOST"):
        spec_of(replace(config, network=replace(config.network, type="HOST")))


def test_c08_args_are_entrypoint_then_args() -> None:
    config = parsed(entrypoint=["/p", "-a"], args={"name": "args", "value": ["-b"], "settable": ["value"]})
    assert spec_of(config)["process"]["args"] == ["/p", "-a", "-b"]
    assert spec_of(config, "args=-c -d")["process"]["args"] == ["/p", "-a", "-c", "-d"]


def test_c05_the_plugins_path_replaces_the_default_one() -> None:
    env = built(env=[{"name": "A", "value": "1"}, {"name": "PATH", "value": "/bin"}, {"name": "B"}])["process"]["env"]
    assert env == ["PATH=/bin", "A=1"]


def test_case_051_a_value_reaches_the_process_as_it_is() -> None:
    config = parsed(env=[{"name": "DSN", "settable": ["value"]}, {"name": "E", "settable": ["value"]}])
    assert spec_of(config, "DSN=k=v== \n", "E")["process"]["env"][1:] == ["DSN=k=v== \n", "E="]


def test_c08_devices_come_with_their_rule_and_each_once() -> None:
    linux = {"devices": [{"path": "/dev/fuse"}, {"path": "/dev/fuse"}]}
    spec = built(linux=linux)
    assert spec["linux"]["devices"] == [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o600, "uid": 0, "gid": 0}
    ]
    rules = spec["linux"]["resources"]["devices"]
    assert rules[-1] == {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"}
    assert rules.index({"allow": False, "type": "c", "major": 10, "minor": 229, "access": "rwm"}) == len(rules) - 2


def test_case_080_all_devices_is_one_rule_in_a_cgroup_of_its_own() -> None:
    linux = {"allowAllDevices": True, "devices": [{"path": "/dev/fuse"}]}
    rules = built(linux=linux)["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": True, "access": "rwm"}
    assert not [each for each in rules if not each["allow"]]
    assert cgroup_path("abc") == "/moorage/abc"


def test_case_081_under_systemd_the_cgroup_is_a_scope_that_systemd_knows() -> None:
    assert cgroup_path("abc", "systemd") == "moorage.slice:moorage:abc"
    assert control_group("abc", "systemd") == "/moorage.slice/moorage-abc.scope"


def test_case_081_without_systemd_the_runtime_and_the_kernel_have_the_same_path() -> None:
    assert cgroup_path("abc") == control_group("abc") == "/moorage/abc"


def test_c08_on_control_groups_version_2_the_hosts_are_bound_and_never_mounted_again() -> None:
    [found] = [each for each in spec_of(parsed(), paths=ON_V2)["mounts"] if each["destination"] == "/sys/fs/cgroup"]
    assert found == {
        "destination": "/sys/fs/cgroup",
        "type": "bind",
        "source": "/sys/fs/cgroup",
        "options": ["rbind", "ro", "nosuid", "noexec", "nodev"],
    }
    [on_v1] = [each for each in built()["mounts"] if each["destination"] == "/sys/fs/cgroup"]
    assert on_v1 == {
        "destination": "/sys/fs/cgroup",
        "type": "cgroup",
        "source": "cgroup",
        "options": ["ro", "nosuid", "noexec", "nodev"],
    }


@pytest.mark.parametrize("kind", ["cgroup", "cgroup2"])
def test_c08_on_version_2_a_mount_of_control_groups_by_the_config_is_a_bind_too(kind: str) -> None:
    config = parsed(mounts=[{"destination": "/host/cgroup", "source": "none", "type": kind, "options": ["rw"]}])
    assert spec_of(config, paths=ON_V2)["mounts"][AFTER_BASE] == {
        "destination": "/host/cgroup",
        "type": "bind",
        "source": "/sys/fs/cgroup",
        "options": ["rbind", "rw"],
    }
    assert spec_of(config)["mounts"][AFTER_BASE]["type"] == kind


def test_case_077_in_a_user_namespace_the_bound_control_groups_keep_their_locked_flags() -> None:
    paths = replace(ON_V2, in_user_namespace=True, locked_flags={"/sys/fs/cgroup": ("nosuid", "relatime")})
    [found] = [each for each in spec_of(parsed(), paths=paths)["mounts"] if each["destination"] == "/sys/fs/cgroup"]
    assert found["options"] == ["rbind", "ro", "nosuid", "noexec", "nodev", "relatime"]


def test_c08_a_directory_of_devices_adds_all_devices_in_it() -> None:
    nodes = (replace(FUSE, path="/dev/d/a"), DeviceNode("/dev/d/b", "b", 7, 0, 0o660, 0, 6))
    spec = spec_of(parsed(linux={"devices": [{"path": "/dev/d"}]}), paths=replace(PATHS, devices={"/dev/d": nodes}))
    assert [each["path"] for each in spec["linux"]["devices"]] == ["/dev/d/a", "/dev/d/b"]
    assert spec["linux"]["resources"]["devices"][-1]["type"] == "b"


def test_c06_a_device_that_is_not_here_is_named_with_the_set_call() -> None:
    config = parsed(linux={"devices": [{"name": "d", "path": "/dev/none", "settable": ["path"]}, {"path": "/dev/x"}]})
    with pytest.raises(errors.Invalid, match=r"device d: there is no /dev/none here; set d\.path=") as caught:
        spec_of(config)
    assert str(caught.value).startswith("cannot enable the plugin: ")


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("CAP_SYS_ADMIN", "CAP_SYS_ADMIN"),
        ("sys_admin", "CAP_SYS_ADMIN"),
        ("Cap_Net_Admin", "CAP_NET_ADMIN"),
        (" BPF ", "CAP_BPF"),
    ],
)
def test_c08_capabilities_are_appended_in_any_spelling(spelling: str, name: str) -> None:
    capabilities = built(linux={"capabilities": [spelling]})["process"]["capabilities"]
    for kind in ("bounding", "effective", "permitted"):
        assert capabilities[kind] == [*DEFAULT_CAPABILITIES, name]
    assert capabilities["inheritable"] == [name]


def test_c08_capabilities_are_there_once() -> None:
    requested = ["CAP_CHOWN", "chown", "CAP_SYS_ADMIN", "SYS_ADMIN"]
    capabilities = built(linux={"capabilities": requested})["process"]["capabilities"]
    assert capabilities["bounding"] == [*DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN"]
    assert capabilities["inheritable"] == ["CAP_CHOWN", "CAP_SYS_ADMIN"]


@pytest.mark.parametrize(
    ("spelling", "text"),
    [
        (
            "CAP_SYS_ADMN",
            "cannot grant capability CAP_SYS_ADMN: Linux has none of this name; did you mean CAP_SYS_ADMIN?",
        ),
        ("ALL", "cannot grant capability ALL: Linux has none of this name"),
        ("", 'cannot grant capability "": '),
    ],
)
def test_c08_case_238_an_unknown_capability_is_refused_by_name(spelling: str, text: str) -> None:
    linux = {"capabilities": [spelling]}
    with pytest.raises(errors.Invalid) as caught:
        parsed(linux=linux)
    assert text.removeprefix("cannot grant capability ") in str(caught.value)
    minimal = {"entrypoint": ["/p"], "interface": {"socket": "p.sock"}}
    of_before = parse_config(json.dumps(minimal | {"linux": linux}).encode(), is_stored=True).config
    with pytest.raises(errors.Invalid) as caught:
        spec_of(of_before)
    assert str(caught.value).startswith(text)


def test_c08_all_capabilities_of_linux_are_known() -> None:
    assert len(CAPABILITIES) == 41


def test_case_082_the_user_is_honoured_and_keeps_what_was_granted() -> None:
    process = built(user={"uid": 1000, "gid": 100}, linux={"capabilities": ["NET_ADMIN"]})["process"]
    assert process["user"] == {"uid": 1000, "gid": 100}
    assert process["capabilities"]["ambient"] == ["CAP_NET_ADMIN"]
    assert "ambient" not in built(linux={"capabilities": ["NET_ADMIN"]})["process"]["capabilities"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"mounts": [bind("/d", None, name="m", settable=["source"])]},
            r"mount m \(on /d\) has no source; set m\.source=",
        ),
        (
            {"mounts": [bind("/d", None, name="m")]},
            r"mount m \(on /d\) has no source; this version of the plugin does not",
        ),
        (
            {"mounts": [bind("/d", None, settable=["source"])]},
            r"a mount without a name \(on /d\) has no source; this ver",
        ),
        ({"linux": {"devices": [{"name": "d", "settable": ["path"]}]}}, r"device d has no path; set d\.path="),
        ({"linux": {"devices": [{}]}}, r"a device without a name has no path; this version of the plugin does not"),
    ],
)
def test_c06_case_048_a_missing_setting_is_refused_with_the_set_call(fields: dict[str, Any], text: str) -> None:
    config = parsed(**fields)
    for attempt in (lambda: spec_of(config), lambda: needs(effective_settings(config, NO_OVERRIDES))):
        with pytest.raises(errors.Invalid, match=text):
            attempt()


def test_c06_an_empty_source_or_path_is_off_until_set() -> None:
    config = parsed(
        mounts=[bind("/d", "", name="m", settable=["source"]), bind("/e")],
        linux={"devices": [{"name": "f", "path": "", "settable": ["path"]}]},
    )
    assert destinations(spec_of(config))[AFTER_BASE:-1] == ["/e"]
    assert "devices" not in spec_of(config)["linux"]
    assert [each.name for each in compute_privileges(config)] == ["mount", "bind mount"]
    on = spec_of(config, "m=/on", "f=/dev/fuse")
    assert destinations(on)[AFTER_BASE:-1] == ["/d", "/e"]
    assert on["linux"]["devices"][0]["path"] == "/dev/fuse"
    assert "/e" not in destinations(spec_of(parsed(mounts=[bind("/e", name="m", settable=["source"])]), "m="))


def test_c06_what_must_be_resolved_is_said_before() -> None:
    config = parsed(
        mounts=[
            bind("/a", "/1"),
            bind("/b", ""),
            bind("/c", "tmpfs", type="tmpfs", options=[]),
            bind("/d", "/2", type="none", options=["bind"]),
        ],
        linux={"devices": [{"path": "/dev/fuse"}, {"path": ""}]},
    )
    found = needs(effective_settings(config, NO_OVERRIDES))
    assert [each.path for each in found.sources] == ["/1", "/2"]
    assert [each.path for each in found.devices] == ["/dev/fuse"]
    assert "a mount without a name (on /a): there is no /1 here" in str(found.sources[0].missing())


def test_case_072_a_socket_in_a_sub_directory_works() -> None:
    config = parsed(interface={"socket": "csi/csi.sock"})
    assert socket_path(config, PATHS) == "/run/m/p/0/s/csi/csi.sock"
    spec_of(config)


@pytest.mark.parametrize(
    ("directory", "name", "is_fine"),
    [
        ("/" + "r" * 99, "p.sock", True),
        ("/" + "r" * 100, "p.sock", False),
        ("/" + "r" * 59, "s" * 60, False),
        ("/" + "ä" * 50, "p.sock", False),
        ("/s", "s" * 87, True),
        ("/s", "s" * 88, False),
    ],
)
def test_case_072_a_path_over_the_limit_is_refused_with_path_and_limit(
    directory: str, name: str, is_fine: bool
) -> None:
    config = parsed(interface={"socket": name})
    paths = replace(PATHS, socket_directory=directory)
    if is_fine:
        spec_of(config, paths=paths)
        return
    with pytest.raises(errors.Invalid, match="and a unix socket's path may have 107") as caught:
        spec_of(config, paths=paths)
    assert f"/{name} has " in str(caught.value)


def test_case_077_in_a_user_namespace_locked_flags_stay() -> None:
    config = parsed(mounts=[bind("/a", "/locked", options=["rbind", "nodev"]), bind("/b", "/free")], pidhost=True)
    paths = replace(
        PATHS, in_user_namespace=True, locked_flags={"/locked": ("nodev", "nosuid"), "/run/m/p/0/s": ("ro",)}
    )
    mounts = {each["destination"]: each for each in spec_of(config, paths=paths)["mounts"]}
    assert mounts["/a"]["options"] == ["rbind", "nodev", "nosuid"]
    assert mounts["/b"]["options"] == ["rbind"]
    assert mounts["/run/docker/plugins"]["options"] == ["rbind", "rshared", "ro"]
    assert mounts["/proc"]["type"] == "bind"
    assert "gid=5" not in mounts["/dev/pts"]["options"]
    assert "newinstance" in mounts["/dev/pts"]["options"]


def test_case_077_file_systems_of_the_hosts_namespaces_are_bound_or_left_out() -> None:
    paths = replace(PATHS, in_user_namespace=True)
    config = parsed(network={"type": "host"}, ipchost=True)
    mounts = {each["destination"]: each for each in spec_of(config, paths=paths)["mounts"]}
    assert mounts["/sys"] == {
        "destination": "/sys",
        "type": "bind",
        "source": "/sys",
        "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
    }
    assert "/dev/mqueue" not in mounts
    assert mounts["/proc"]["type"] == "proc"
    isolated = {each["destination"]: each for each in spec_of(parsed(), paths=paths)["mounts"]}
    assert (isolated["/sys"]["type"], isolated["/dev/mqueue"]["type"]) == ("sysfs", "mqueue")


# --- properties of the whole spec

CAPABILITY = st.sampled_from(sorted(CAPABILITIES)).flatmap(lambda name: st.sampled_from([name, name[4:].lower()]))
DESTINATION = st.sampled_from(
    ["/dev", "/dev/shm", "/dev/pts/", "/dev/fuse", "/a", "/run/docker", "/run/docker/plugins", "/proc"]
)
configs = st.builds(
    lambda mounts, devices, capabilities, all_devices, pid, ipc, network, propagated, uid: parsed(
        mounts=mounts,
        linux={"devices": devices, "capabilities": capabilities, "allowAllDevices": all_devices},
        pidhost=pid,
        ipchost=ipc,
        network={"type": network},
        propagatedMount=propagated,
        user={"uid": uid},
    ),
    st.lists(st.builds(bind, DESTINATION, st.sampled_from(["", "/1", "/2"])), max_size=4),
    st.lists(st.fixed_dictionaries({"path": st.sampled_from(["", "/dev/fuse"])}), max_size=2),
    st.lists(CAPABILITY, max_size=5),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["host", "none", "bridge", ""]),
    st.sampled_from(["", "/v", "/run/docker", "/dev/shm"]),
    st.sampled_from([0, 1000]),
)


@briefly
@given(configs)
def test_c08_every_capability_is_there_once(config: Config) -> None:
    sets = spec_of(config)["process"]["capabilities"]
    requested = {"CAP_" + each.upper().removeprefix("CAP_") for each in config.linux.capabilities}
    for kind, names in sets.items():
        assert len(names) == len(set(names))
        assert set(names) == requested | (set() if kind in ("inheritable", "ambient") else set(DEFAULT_CAPABILITIES))


@briefly
@given(configs)
def test_c08_no_mount_is_lost_and_their_order_is_preserved(config: Config) -> None:
    mounts = [(each["destination"], each["source"]) for each in spec_of(config)["mounts"]]
    requested = [(each.destination, each.source) for each in config.mounts if each.source]
    start = [each[1] for each in mounts].index("/run/m/p/0/s") - len(requested)
    assert mounts[start : start + len(requested)] == requested
    assert (mounts[start - 1] == (config.propagated_mount, PATHS.propagated_mount)) is bool(config.propagated_mount)
    taken = {each.rstrip("/") for each, _ in requested} | {config.propagated_mount}
    before = mounts[: start - bool(config.propagated_mount)]
    lost = [each.destination for each in MOUNTS if (each.destination, each.source) not in before]
    assert all(each.startswith("/dev/") and each in taken for each in lost)


@briefly
@given(configs)
def test_c08_no_privileged_field_without_a_privilege(config: Config) -> None:
    spec = spec_of(config)
    requested = {(each.name, value) for each in compute_privileges(config) for value in each.value}
    shared = {"mount", "uts", "pid", "ipc", "network"} - {each["type"] for each in spec["linux"]["namespaces"]}
    assert shared == {
        kind
        for kind, privilege in {
            "pid": ("host pid namespace", "true"),
            "ipc": ("host ipc namespace", "true"),
            "network": ("network", "host"),
        }.items()
        if privilege in requested
    }
    own = {"/run/m/p/0/s", "/var/m/0/propagated-mount", "/etc/hosts", "/etc/resolv.conf"} | {
        each.source for each in MOUNTS
    }
    assert {each["source"] for each in spec["mounts"]} - own == {value for name, value in requested if name == "mount"}
    assert {each["path"] for each in spec["linux"].get("devices", [])} == {
        value for name, value in requested if name == "device"
    }
    is_open = {"allow": True, "access": "rwm"} in spec["linux"]["resources"]["devices"]
    assert is_open is (("allow-all-devices", "true") in requested)


@briefly
@given(configs)
def test_c08_the_spec_is_plain_json_and_the_same_each_time(config: Config) -> None:
    assert json.dumps(spec_of(config)) == json.dumps(spec_of(config))


# --- looking devices up (the one part with I/O)


def test_c08_a_device_is_resolved_with_its_numbers_and_mode() -> None:
    (node,) = resolve_device("/dev/null")
    assert (node.path, node.type, node.major, node.minor) == ("/dev/null", "c", 1, 3)
    assert node.file_mode == stat.S_IMODE(os.stat("/dev/null").st_mode)


def test_c08_a_link_is_followed_and_keeps_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("/dev/zero")
    (tmp_path / "two").symlink_to("one")
    (node,) = resolve_device(f"{tmp_path}/two")
    assert (node.path, node.minor) == (f"{tmp_path}/two", 5)


def test_c08_a_directory_is_walked_by_name_without_links_files_and_fifos(tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to("/dev/zero")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    assert resolve_device(str(tmp_path)) == ()
    (tmp_path / "pts").symlink_to("/dev/pts")
    found = resolve_device(f"{tmp_path}/pts")
    assert [each.path for each in found if each.path.endswith("/ptmx")] == [f"{tmp_path}/pts/ptmx"]
    everything = [each.path for each in resolve_device("/dev")]
    assert {"/dev/null", "/dev/pts/ptmx"} <= set(everything)
    assert len(everything) == len(set(everything))


def test_c08_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    paths = ["/dev/none", "/dev/null/x", f"{tmp_path}/loop", "/" + "x" * 300, "/dev/null", "/dev/null"]
    assert list(resolve_devices(paths)) == ["/dev/null"]


def test_c08_what_cannot_be_inspected_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os.path, "realpath", refuse)
    with pytest.raises(errors.Unavailable, match="cannot examine device /dev/x: Permission denied"):
        resolve_device("/dev/x")


def test_case_077_the_flags_of_a_source_are_those_of_its_mount() -> None:
    flags = locked_flags(["/proc", "/", "/proc"])
    options = {
        line.split()[1]: line.split()[3].split(",") for line in Path("/proc/self/mounts").read_text().splitlines()
    }
    for path, found in flags.items():
        assert set(found) == {"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime"} & set(
            options[path]
        )
    with pytest.raises(errors.Unavailable, match="cannot examine mount source /none/there: No such file"):
        locked_flags(["/none/there"])
