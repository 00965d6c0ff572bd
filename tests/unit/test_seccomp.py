"""The system call filter: our rules alone, and narrowed by a profile of the host."""

import errno
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.plugins._base import CAPABILITIES, DEFAULT_CAPABILITIES
from moorage.plugins.seccomp import Caller, Profile, build_filter, parse_profile

pytestmark = pytest.mark.quick

DEFAULT = frozenset(DEFAULT_CAPABILITIES)
NAMESPACES = 0x7E020000

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "syscalls": [
        {
            "names": ["read", "unshare", "mount", "keyctl", "newer_call", "clone", "personality"],
            "action": "SCMP_ACT_ALLOW",
        },
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
        {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
        {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_CHROOT"]}, "errnoRet": 1},
        {"names": ["newest_call"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "9.0"}},
        {
            "names": ["old_call"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 3, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        },
    ],
}


def verdict(made: dict[str, Any], name: str) -> Any:
    """What a filter says of a call: "allow", an error number, or "arguments"."""
    rules = [each for each in made["syscalls"] if name in each["names"]]
    if any(each.get("args") for each in rules):
        return "arguments"
    found = {each["action"]: each.get("errnoRet") for each in rules}
    assert len(found) <= 1, f"{name} is both allowed and refused"
    if not found:
        return made["defaultErrnoRet"]
    return "allow" if "SCMP_ACT_ALLOW" in found else found["SCMP_ACT_ERRNO"]


def build(*more: str, profile: Any = None, **fields: Any) -> dict[str, Any]:
    host = None if profile is None else parse_profile(json.dumps(profile).encode())
    return build_filter(Caller(DEFAULT | frozenset(more), **fields), host)


@pytest.mark.parametrize("profile", [None, PROFILE])
@pytest.mark.parametrize(
    "name",
    ["keyctl", "add_key", "userfaultfd", "io_uring_setup", "bpf", "unshare", "mount", "setns", "perf_event_open",
     "init_module", "kexec_load", "open_by_handle_at", "pivot_root", "swapon", "acct", "settimeofday", "reboot"],
)  # fmt: skip
def test_x01_what_is_not_granted_is_refused_with_eperm_also_where_the_host_allows_it(name: str, profile: Any) -> None:
    assert verdict(build(profile=profile), name) == errno.EPERM


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_SYS_ADMIN", "unshare"),
        ("CAP_SYS_ADMIN", "bpf"),
        ("CAP_BPF", "bpf"),
        ("CAP_SYS_MODULE", "init_module"),
        ("CAP_SYS_TIME", "clock_settime"),
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_PERFMON", "perf_event_open"),
    ],
)
def test_x01_what_a_capability_needs_is_allowed_with_it(capability: str, name: str) -> None:
    assert verdict(build(), name) == errno.EPERM
    assert verdict(build(capability), name) == "allow"


def test_x01_no_capability_allows_the_calls_that_are_never_needed() -> None:
    everything = build_filter(Caller(CAPABILITIES))
    for name in ("keyctl", "userfaultfd", "io_uring_setup", "io_uring_enter", "request_key"):
        assert verdict(everything, name) == errno.EPERM


def test_x01_clone_makes_no_namespace_and_clone3_is_unknown_so_that_libraries_fall_back() -> None:
    clone, *refused = [each for each in build()["syscalls"] if "clone" in each["names"]]
    assert clone["args"] == [{"index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]
    assert sum(each["args"][0]["value"] for each in refused) == NAMESPACES
    assert {each["errnoRet"] for each in refused} == {errno.EPERM}
    assert verdict(build(), "clone3") == errno.ENOSYS
    swapped, *_ = [each for each in build(architecture="s390x")["syscalls"] if "clone" in each["names"]]
    assert swapped["args"][0]["index"] == 1
    granted = build("CAP_SYS_ADMIN")
    assert (verdict(granted, "clone"), verdict(granted, "clone3")) == ("allow", "allow")


def test_x01_ptrace_is_for_own_processes_only() -> None:
    assert verdict(build(), "ptrace") == "allow"
    assert verdict(build(sees_host_processes=True), "ptrace") == errno.EPERM
    assert verdict(build("CAP_SYS_PTRACE", sees_host_processes=True), "ptrace") == "allow"


def test_x01_architectures_have_their_own_calls() -> None:
    assert verdict(build(), "arch_prctl") == "allow"
    assert verdict(build(architecture="arm64"), "arch_prctl") == errno.ENOSYS
    assert verdict(build(architecture="arm64"), "set_tls") == "allow"
    assert build()["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert "architectures" not in build(architecture="loong64")


def test_x01_calls_without_a_number_are_unknown() -> None:
    assert verdict(build(), "a_call_of_the_future") == errno.ENOSYS


def test_x01_a_profile_of_the_host_decides_on_calls_that_our_rules_do_not_guard() -> None:
    made = build(profile=PROFILE)
    assert verdict(made, "newer_call") == "allow"
    assert verdict(made, "write") == errno.ENOSYS, "narrowed: the host does not allow it"
    assert verdict(made, "newest_call") == errno.ENOSYS
    assert verdict(build(profile=PROFILE, kernel=(9, 1)), "newest_call") == "allow"
    assert verdict(made, "old_call") == "arguments"
    assert verdict(made, "chroot") == "allow"


def test_x01_what_the_host_does_not_allow_is_not_granted_by_a_capability() -> None:
    assert verdict(build("CAP_SYS_ADMIN", profile=PROFILE), "mount") == "allow"
    assert verdict(build("CAP_SYS_ADMIN", profile=PROFILE), "bpf") == errno.ENOSYS
    assert verdict(build("CAP_SYS_ADMIN", profile=PROFILE), "clone") == "allow"


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{}", b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}', b'{"defaultAction": "SCMP_ACT_ERRNO"}',
     b'{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["x"], "action": "A", "args": [{"index": "x"}]}]}',
     b"[" * 100_000],
)  # fmt: skip
def test_x01_a_profile_of_another_shape_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.Invalid, match="cannot read the seccomp profile"):
        parse_profile(raw)


@given(st.sets(st.sampled_from(sorted(CAPABILITIES))), st.sampled_from(["amd64", "arm64", "s390x"]), st.booleans())
def test_x01_every_call_has_one_verdict_and_none_is_wider_with_a_host_profile(
    capabilities: set[str], architecture: str, sees: bool
) -> None:
    caller = Caller(frozenset(capabilities), architecture, sees_host_processes=sees)
    own = build_filter(caller)
    narrowed = build_filter(caller, parse_profile(json.dumps(PROFILE).encode()))
    for name in {name for each in narrowed["syscalls"] for name in each["names"]}:  # type: ignore[attr-defined]
        if verdict(narrowed, name) == "allow" and name not in ("newer_call", "newest_call"):
            assert verdict(own, name) == "allow"
    assert build_filter(caller, Profile())["syscalls"] != []
