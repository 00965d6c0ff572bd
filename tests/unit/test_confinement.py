"""What a confinement becomes in a spec, and what a host has for it, on files of a made-up host."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moorage import errors
from moorage.client import MoorageClient
from moorage.doctor.check import CheckTarget, run_checks
from moorage.doctor.findings import Finding, Verdict
from moorage.doctor.security import SECURITY_CHECKS
from moorage.host.id_mapping import FIRST_BASE, ID_COUNT, find_base, mapped_owner
from moorage.plugins import (
    BUILT_IN,
    NO_CONFINEMENT,
    NO_OVERRIDES,
    Confinement,
    HostFeatures,
    HostPaths,
    check_confinement,
    confined_spec,
    effective_settings,
    parse_config,
    parse_policy,
    resolve_confinement,
    resources_of,
    widenings,
)
from moorage.plugins.apparmor import APPARMOR_PROFILES, profile_for, profiles_text
from moorage.plugins.confinement import RLIMITS
from moorage.runs.host_security import HostSecurity

pytestmark = pytest.mark.quick

HOST = HostFeatures(init_program="/usr/bin/tini-static", id_base=FIRST_BASE)


def spec_of(confinement: Confinement = NO_CONFINEMENT, host: HostFeatures = HOST, **fields: Any) -> Any:
    document = {"entrypoint": ["/p", "x"], "interface": {"socket": "p.sock"}} | fields
    config = parse_config(json.dumps(document).encode()).config
    paths = HostPaths("/r", "/s", "/c", "/v")
    settings = effective_settings(config, NO_OVERRIDES)
    return confined_spec(config, settings, paths, resolve_confinement(confinement), host)


def mount_at(spec: Any, point: str) -> Any:
    (found,) = [each for each in spec["mounts"] if each["destination"] == point]
    return found


def test_x01_x02_x04_the_defaults() -> None:
    spec = spec_of()
    assert spec["process"]["noNewPrivileges"] is True
    assert spec["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ERRNO"
    assert spec["linux"]["resources"]["pids"] == {"limit": 2048}
    assert not {"memory", "cpu"} & spec["linux"]["resources"].keys()
    assert "readonly" not in spec["root"]
    assert "apparmorProfile" not in spec["process"]


def test_case_215_every_limit_is_defined() -> None:
    process = spec_of()["process"]
    assert [each["type"] for each in process["rlimits"]] == [f"RLIMIT_{name.upper()}" for name in RLIMITS]
    assert set(BUILT_IN.rlimits) == set(RLIMITS)
    assert process["oomScoreAdj"] == 0
    assert process["scheduler"] == {"policy": "SCHED_OTHER", "nice": 0}


def test_case_215_a_limit_is_at_most_what_this_host_may_give() -> None:
    host = replace(HOST, open_files=5000, rlimit_bounds={"stack": 100, "core": -1, "nproc": 7})
    limits = {each["type"]: (each["soft"], each["hard"]) for each in spec_of(host=host)["process"]["rlimits"]}
    assert limits["RLIMIT_NOFILE"] == (5000, 5000)
    assert limits["RLIMIT_STACK"] == (100, 100)
    assert limits["RLIMIT_CORE"] == (0, 2**64 - 1)
    assert limits["RLIMIT_NPROC"] == (7, 7)


def test_x04_in_a_user_namespace_of_the_engine_nothing_is_raised() -> None:
    spec = spec_of(host=replace(HOST, in_user_namespace=True))
    assert not {"rlimits", "oomScoreAdj", "scheduler"} & spec["process"].keys()
    assert "pids" not in spec["linux"]["resources"]
    assert spec["process"]["noNewPrivileges"] is True


def test_x01_a_kernel_without_filters_gets_none() -> None:
    assert "seccomp" not in spec_of(host=replace(HOST, has_seccomp=False))["linux"]


def test_x05_the_init_program_comes_before_the_entrypoint() -> None:
    spec = spec_of(Confinement(init=True))
    assert spec["process"]["args"] == ["/.moorage-init", "--", "/p", "x"]
    assert mount_at(spec, "/.moorage-init")["source"] == "/usr/bin/tini-static"
    with pytest.raises(errors.Invalid, match="install tini or catatonit"):
        spec_of(Confinement(init=True), replace(HOST, init_program=""))


ARMORED = replace(
    HOST, has_apparmor=True, apparmor_profile="moorage-default", apparmor_profiles=frozenset({"moorage-default", "own"})
)


def test_x06_a_profile_and_a_label_are_passed_on() -> None:
    assert spec_of(host=ARMORED)["process"]["apparmorProfile"] == "moorage-default"
    assert spec_of(Confinement(apparmor="own"), ARMORED)["process"]["apparmorProfile"] == "own"
    assert spec_of(Confinement(apparmor="unconfined"), ARMORED)["process"]["apparmorProfile"] == "unconfined"
    spec = spec_of(Confinement(selinux_label="system_u:system_r:container_t:s0"))
    assert spec["process"]["selinuxLabel"] == spec["linux"]["mountLabel"] == "system_u:system_r:container_t:s0"


@pytest.mark.parametrize("setting", [None, "default", "unconfined"])
def test_x06_without_apparmor_in_the_kernel_no_profile_is_named_not_even_unconfined(setting: str | None) -> None:
    assert "apparmorProfile" not in spec_of(Confinement(apparmor=setting))["process"]


def test_x06_a_profile_that_this_host_does_not_have_is_refused_by_name() -> None:
    other = Confinement(apparmor="other")
    with pytest.raises(errors.Invalid, match="cannot use AppArmor profile other: AppArmor is not active on this host"):
        spec_of(other)
    with pytest.raises(errors.Invalid, match="cannot use AppArmor profile other: it is not loaded on this host"):
        spec_of(other, ARMORED)
    unknown = replace(ARMORED, apparmor_profiles=frozenset(), apparmor_profile="")
    assert spec_of(other, unknown)["process"]["apparmorProfile"] == "other", "whether it is loaded cannot be read here"


def test_x06_a_host_that_cannot_load_our_profiles_starts_plugins_without_one() -> None:
    assert "apparmorProfile" not in spec_of(host=replace(ARMORED, apparmor_profile=""))["process"]


def test_x06_case_077_in_a_user_namespace_the_default_is_no_profile() -> None:
    inside = replace(ARMORED, in_user_namespace=True)
    assert "apparmorProfile" not in spec_of(host=inside)["process"]
    assert spec_of(Confinement(apparmor="own"), inside)["process"]["apparmorProfile"] == "own"


def test_x07_what_is_mounted_on_a_writable_directory_stays() -> None:
    mounts = [{"source": "/srv", "destination": "/tmp", "type": "bind", "options": ["rbind"]}]
    spec = spec_of(Confinement(read_only=True), mounts=mounts, propagatedMount="/var/tmp")
    assert spec["root"]["readonly"] is True
    assert mount_at(spec, "/run")["type"] == "tmpfs"
    assert mount_at(spec, "/tmp")["source"] == "/srv"
    assert mount_at(spec, "/var/tmp")["source"] == "/v"
    order = [each["destination"] for each in spec["mounts"]]
    assert order.index("/run") < order.index("/run/docker/plugins")
    assert order.index("/dev/shm") < order.index("/run")


def test_x08_ids_are_mapped_from_the_base_on() -> None:
    linux = spec_of(Confinement(userns="auto"))["linux"]
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": FIRST_BASE, "size": ID_COUNT}]
    assert {"type": "user"} in linux["namespaces"]


@given(st.integers(0, 2**32 - 2), st.sampled_from([0, FIRST_BASE, FIRST_BASE + 5 * ID_COUNT]))
def test_x08_an_owner_inside_is_the_same_under_every_base(id: int, base: int) -> None:
    there = mapped_owner(id, base)
    assert mapped_owner(there, base) == there, "a change that is repeated changes nothing"
    assert mapped_owner(mapped_owner(there, FIRST_BASE + 9 * ID_COUNT), base) == there
    if id < ID_COUNT:
        assert there == id + base


def test_x08_bases_are_free_ones() -> None:
    first = find_base(frozenset(), 7)
    assert first % ID_COUNT == 0
    assert find_base(frozenset({first}), 7) == first + ID_COUNT
    every = frozenset(FIRST_BASE + each * ID_COUNT for each in range(4095))
    with pytest.raises(errors.Unavailable, match="all ids for them are in use"):
        find_base(every, 3)


def test_x03_x04_own_values_go_over_the_engines_and_those_over_the_built_in() -> None:
    defaults = Confinement(pids=100, capabilities="minimal", rlimits={"nofile": (1, 2), "core": (3, 4)})
    resolved = resolve_confinement(Confinement(pids=0, rlimits={"core": (5, 6)}), defaults)
    assert (resolved.pids, resolved.capabilities) == (0, "minimal")
    assert (resolved.rlimits["nofile"], resolved.rlimits["core"]) == ((1, 2), (5, 6))
    assert resolved.rlimits["stack"] == BUILT_IN.rlimits["stack"]


def test_x04_only_what_was_changed_is_changed_while_it_runs() -> None:
    resolved = resolve_confinement(Confinement(pids=64, memory_bytes=0, cpus=1.5))
    assert resources_of(resolved, Confinement(pids=64)) == {"pids": {"limit": 64}}
    assert resources_of(resolved, Confinement(memory_bytes=0)) == {"memory": {"limit": -1}}
    assert resources_of(resolved, Confinement(cpus=1.5)) == {"cpu": {"quota": 150_000, "period": 100_000}}
    assert resources_of(resolved, Confinement(nice=3)) == {}


def test_x01_x02_x06_what_is_more_than_the_default_is_a_widening() -> None:
    assert widenings(BUILT_IN) == ()
    assert widenings(Confinement(capabilities="minimal", userns="auto", read_only=True)) == ()
    wide = Confinement(seccomp="unconfined", new_privileges=True, apparmor="other")
    assert [str(each) for each in widenings(wide)] == [
        "seccomp [unconfined]",
        "new privileges [true]",
        "apparmor [other]",
    ]


def test_x01_x02_x06_the_policy_of_a_host_names_what_it_grants() -> None:
    policy = parse_policy(b'{"seccomp": ["unconfined"], "newPrivileges": true, "apparmor": ["own"]}')
    assert policy.allows_widening("seccomp", "unconfined")
    assert policy.allows_widening("new privileges", "true")
    assert policy.allows_widening("apparmor", "own")
    assert not policy.allows_widening("apparmor", "unconfined")
    assert not any(
        parse_policy(b"{}").allows_widening(*each) for each in (("seccomp", "x"), ("new privileges", "true"))
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Confinement(memory_bytes=1), "cannot limit memory to 1"),
        (Confinement(cpus=0.001), "cannot limit cpus to 0.001"),
        (Confinement(cpus=float("nan")), "cannot limit cpus to nan"),
        (Confinement(pids=15), "cannot limit pids to 15"),
        (Confinement(pids=-1), "cannot limit pids to -1"),
        (Confinement(oom_score_adj=1001), "cannot set oom_score_adj to 1001"),
        (Confinement(rlimits={"nofile": (-2, 5)}), "cannot set rlimit nofile to -2:5"),
        (Confinement(rlimits={"nofile": (-1, 5)}), "cannot set rlimit nofile to -1:5"),
    ],
)
def test_x04_values_that_no_plugin_can_have_are_refused(change: Confinement, text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        check_confinement(change)


# ---- AppArmor, and what a host has


def host_at(root: Path, **files: str) -> HostSecurity:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HostSecurity(root)


def profile_of(**fields: Any) -> str:
    document = {"entrypoint": ["/p"], "interface": {"socket": "p.sock"}} | fields
    config = parse_config(json.dumps(document).encode()).config
    return profile_for(config, effective_settings(config, NO_OVERRIDES))


def mount_on(destination: str, *options: str, source: str | None = "/x", type: str = "bind") -> dict[str, Any]:
    return {"source": source, "destination": destination, "type": type, "options": options or ["rbind"]}


def test_x06_a_plugin_gets_the_narrowest_profile_that_allows_what_it_was_granted() -> None:
    assert profile_of() == profile_of(linux={"capabilities": ["NET_ADMIN"]}) == "moorage-default"
    assert profile_of(linux={"capabilities": ["sys_admin"]}) == "moorage-default-mount"
    assert profile_of(pidHost=True, linux={"capabilities": ["CAP_SYS_ADMIN"]}) == "moorage-default-host"


@pytest.mark.parametrize(
    ("mount", "profile"),
    [
        (mount_on("/sys"), "moorage-default-host"),
        (mount_on("/sys/fs/bpf", type="bpf"), "moorage-default-host"),
        (mount_on("/mnt/../proc/sys"), "moorage-default-host"),
        (mount_on("/sys", "rbind", "ro"), "moorage-default"),
        (mount_on("/sys", source=None), "moorage-default"),
        (mount_on("/sys", source=""), "moorage-default"),
        (mount_on("/sys/fs/cgroup"), "moorage-default"),
        (mount_on("/host/sys"), "moorage-default"),
        (mount_on("/system"), "moorage-default"),
    ],
    ids=str,
)
def test_x06_a_mount_that_may_be_written_where_profiles_deny_that_needs_the_widest(
    mount: dict[str, Any], profile: str
) -> None:
    assert profile_of(mounts=[mount]) == profile


def test_x06_each_profile_is_in_the_text_once() -> None:
    text = profiles_text()
    for name in APPARMOR_PROFILES:
        assert text.count(f"\nprofile {name} flags=(attach_disconnected,mediate_deleted) {{\n") == 1
    assert text.count("\n}\n") == text.count("include if exists <local/moorage>") == len(APPARMOR_PROFILES)


ENFORCED = "".join(f"{each} (enforce)\n" for each in APPARMOR_PROFILES)


def test_x06_apparmor_is_found_by_what_the_kernel_says(tmp_path: Path) -> None:
    assert not HostSecurity(tmp_path).ensure_apparmor_profiles()
    off = host_at(tmp_path / "off", sys__module__apparmor__parameters__enabled="N\n")
    assert not off.has_apparmor()
    loaded = host_at(
        tmp_path / "on",
        sys__module__apparmor__parameters__enabled="Y\n",
        sys__kernel__security__apparmor__profiles=f"{ENFORCED}a (b) c (unconfined)\n/usr/bin/man (complain)\n",
    )
    assert loaded.has_apparmor()
    modes = dict.fromkeys(APPARMOR_PROFILES, "enforce") | {"a (b) c": "unconfined", "/usr/bin/man": "complain"}
    assert loaded.loaded_apparmor_profiles() == modes
    assert loaded.ensure_apparmor_profiles()


def test_x06_a_user_other_than_root_sees_the_spec_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_at(tmp_path, sys__module__apparmor__parameters__enabled="Y\n")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert host.ensure_apparmor_profiles()
    (tmp_path / "etc/apparmor.d/disable").mkdir(parents=True)
    (tmp_path / "etc/apparmor.d/disable/moorage").symlink_to("/etc/apparmor.d/moorage")
    assert not host.ensure_apparmor_profiles()


def test_x06_profiles_that_are_disabled_on_this_host_are_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = host_at(
        tmp_path,
        sys__module__apparmor__parameters__enabled="Y\n",
        sys__kernel__security__apparmor__profiles="",
    )
    (tmp_path / "etc/apparmor.d/disable").mkdir(parents=True)
    (tmp_path / "etc/apparmor.d/disable/moorage").symlink_to("/etc/apparmor.d/moorage")
    assert not host.ensure_apparmor_profiles()
    host.refresh_apparmor_profiles()
    assert not caplog.records
    found = findings(host)["AppArmor"]
    assert found.verdict is Verdict.WARNING
    assert "plugins run without a profile: /etc/apparmor.d/disable/moorage exists" in found.text


def test_x06_profiles_that_cannot_be_loaded_are_a_warning_and_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = host_at(tmp_path, sys__module__apparmor__parameters__enabled="Y\n")
    (tmp_path / "etc/apparmor.d").mkdir(parents=True)
    (tmp_path / "etc/apparmor.d/moorage").write_text("no profile\n")
    assert not host.ensure_apparmor_profiles()
    assert "cannot load the AppArmor profiles of plugins: " in caplog.text
    assert "plugins run without an AppArmor profile" in caplog.text
    found = findings(host)["AppArmor"]
    assert found.verdict is Verdict.WARNING
    assert found.text.startswith("active, but plugins run without a profile: ")


def test_x01_the_administrators_profile_comes_before_the_distributions(tmp_path: Path) -> None:
    profile = '{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []}'
    host = host_at(tmp_path, usr__share__containers__seccomp="x")
    assert host.find_seccomp_profile() is None
    (tmp_path / "usr/share/containers/seccomp.json").write_text(profile)
    assert host.read_seccomp_profile() is not None
    (tmp_path / "etc/containers").mkdir(parents=True)
    (tmp_path / "etc/containers/seccomp.json").write_text("no JSON")
    with pytest.raises(errors.Invalid, match=r"cannot read the seccomp profile: .*etc/containers/seccomp\.json"):
        host.read_seccomp_profile()
    assert host.seccomp_profile() is None, "the built-in rules hold"


def findings(host: HostSecurity) -> dict[str, Finding]:
    target = CheckTarget(Path("/none"), Path("/none"), Path("/none"), MoorageClient("/none").info, host)
    return {each.subject: each for each in run_checks(SECURITY_CHECKS, target)}


def test_x06_doctor_says_what_is_active(tmp_path: Path) -> None:
    found = findings(HostSecurity(tmp_path))
    assert found["seccomp"].verdict is Verdict.WARNING
    assert found["AppArmor"].text == found["SELinux"].text == "not active on this host"
    assert found["init program"].text == "none here; moorage policy --init needs tini or catatonit"
    host = host_at(
        tmp_path,
        proc__sys__kernel__seccomp__actions_avail="errno allow\n",
        sys__module__apparmor__parameters__enabled="Y\n",
        sys__kernel__security__apparmor__profiles=ENFORCED,
        sys__fs__selinux__enforce="1",
        etc__containers__x="",
    )
    found = findings(host)
    assert found["seccomp"].text == "active, with the built-in rules"
    assert found["AppArmor"].text == "active, with moorage-default, moorage-default-mount, moorage-default-host"
    assert found["SELinux"].text.startswith("enforcing; ")
    (tmp_path / "etc/containers/seccomp.json").write_text("{}")
    assert findings(host)["seccomp"].verdict is Verdict.WARNING
    lax = ENFORCED.replace("mount (enforce)", "mount (complain)")
    (tmp_path / "sys/kernel/security/apparmor/profiles").write_text(lax)
    complaint = findings(host)["AppArmor"]
    assert complaint.verdict is Verdict.WARNING
    assert complaint.text == "active, but nothing is denied to plugins: moorage-default-mount in complain mode"
