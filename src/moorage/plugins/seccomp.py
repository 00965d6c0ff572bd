"""System call filters for plugins, as ``linux.seccomp`` of the OCI runtime specification. Pure: no file is read here.

Two sources become one filter. Our own rules (``seccomp_rules.json``) always apply. A profile of the host in the format
of containers-common (/usr/share/containers/seccomp.json) can narrow them, and decides on calls that our rules do not
name; it cannot widen them: that profile lets every container call unshare, mount and keyctl, and relies on
capabilities alone.

Calls that containers must not make fail with EPERM; unknown calls fail with ENOSYS, so that a C
library that is newer than this list falls back to an older call.
"""

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from msgspec import Struct, field

from moorage import errors

__all__ = ("Caller", "Profile", "ProfileRule", "build_filter", "parse_profile")

_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"

_NAMESPACE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
"""CLONE_NEW* of clone(2): NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""PER_LINUX, PER_LINUX32, both with UNAME26, and the value that only asks. Source: personality(2)."""

_AF_VSOCK = 40
"""Reaches the hypervisor, and is in no network namespace."""

# x32 is left out: no distribution runs it, and each architecture costs a start 4 ms of compiling
_ARCHITECTURES = {
    "amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"),
    "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "arm": ("SCMP_ARCH_ARM",),
    "386": ("SCMP_ARCH_X86",),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
}

_PROFILE_ARCHITECTURES = {"386": "x86"}
"""Names that containers-common spells differently."""


class Caller(Struct, frozen=True):
    """What a filter depends on: the plugin's capabilities (``CAP_...``), the machine, its kernel."""

    capabilities: frozenset[str]
    architecture: str = "amd64"
    """As Go and OCI name it."""
    kernel: tuple[int, int] = (6, 1)
    sees_host_processes: bool = False
    """Whether it shares the PID namespace of the host; then it may not trace what it sees there."""


class ProfileRule(Struct, frozen=True):
    """One entry of a profile: the action for these calls if its conditions apply."""

    names: tuple[str, ...]
    action: str
    errno: int | None = None
    arguments: tuple[tuple[int, int, int, str], ...] = ()
    """Index, value, second value, operator; all must match."""
    needs_capabilities: frozenset[str] = frozenset()
    needs_architectures: frozenset[str] = frozenset()
    needs_kernel: tuple[int, int] | None = None
    without_capabilities: frozenset[str] = frozenset()
    without_architectures: frozenset[str] = frozenset()

    def applies(self, caller: Caller) -> bool:
        """Whether its conditions apply to a caller. Source: containers-common pkg/seccomp, ``setupSeccomp``."""
        architecture = _PROFILE_ARCHITECTURES.get(caller.architecture, caller.architecture)
        if self.needs_architectures and architecture not in self.needs_architectures:
            return False
        if self.without_architectures and architecture in self.without_architectures:
            return False
        if self.needs_kernel is not None and caller.kernel < self.needs_kernel:
            return False
        return self.needs_capabilities <= caller.capabilities and not self.without_capabilities & caller.capabilities

    def to_oci(self, names: Iterable[str]) -> dict[str, object]:
        """This rule for some of its calls, as the runtime specification writes it."""
        made: dict[str, object] = {"names": list(names), "action": self.action}
        if self.errno is not None:
            made["errnoRet"] = self.errno
        if self.arguments:
            made["args"] = [
                {"index": index, "value": value, "valueTwo": second, "op": op}
                for index, value, second, op in self.arguments
            ]
        return made


class Profile(Struct, frozen=True):
    """A profile of the host."""

    rules: tuple[ProfileRule, ...] = field(default_factory=tuple)

    def effective(self, caller: Caller) -> list[ProfileRule]:
        """The rules whose conditions apply."""
        return [rule for rule in self.rules if rule.applies(caller)]


def build_filter(caller: Caller, host: Profile | None = None) -> dict[str, object]:
    """``linux.seccomp`` for a plugin: our rules, narrowed by the host's profile where there is one."""
    calls = [*_our_rules(caller)] if host is None else [*_narrowed(caller, host)]
    made: dict[str, object] = {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": errno.ENOSYS,
        "syscalls": calls,
    }
    if caller.architecture in _ARCHITECTURES:  # libseccomp takes the native one by itself
        made["architectures"] = list(_ARCHITECTURES[caller.architecture])
    return made


def parse_profile(raw: bytes) -> Profile:
    """A profile in the format of containers-common.

    Raises: Invalid for a document of another shape.
    """
    try:
        document = json.loads(raw)
        if document["defaultAction"] not in (_ERRNO, "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD"):
            raise ValueError(f"its default action is {document['defaultAction']}, which refuses nothing")
        return Profile(tuple(_rule(each) for each in document["syscalls"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise errors.Invalid(f"cannot read the seccomp profile: {error!r}") from error


def _rule(entry: Mapping[str, Any]) -> ProfileRule:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    names = entry.get("names") or ([entry["name"]] if entry.get("name") else [])
    kernel = includes.get("minKernel")
    return ProfileRule(
        names=tuple(str(each) for each in names),
        action=str(entry["action"]),
        errno=int(entry["errnoRet"]) if entry.get("errnoRet") is not None else None,
        arguments=tuple(
            (int(each["index"]), int(each["value"]), int(each.get("valueTwo", 0)), str(each["op"]))
            for each in entry.get("args") or ()
        ),
        needs_capabilities=frozenset(includes.get("caps") or ()),
        needs_architectures=frozenset(includes.get("arches") or ()),
        needs_kernel=_kernel(kernel) if kernel else None,
        without_capabilities=frozenset(excludes.get("caps") or ()),
        without_architectures=frozenset(excludes.get("arches") or ()),
    )


def _kernel(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


# ---- our own rules


@cache
def _rules() -> dict[str, Any]:
    made = json.loads(resources.files("moorage.plugins").joinpath("seccomp_rules.json").read_bytes())
    assert isinstance(made, dict)
    return made


def _our_rules(caller: Caller) -> Iterator[dict[str, object]]:
    allowed = _allowed(caller)
    yield _allow(sorted(allowed - _conditional_names()))
    yield from _conditional(caller, allowed)
    yield _refuse(sorted(_guarded() - allowed - _conditional_names()))


def _narrowed(caller: Caller, host: Profile) -> Iterator[dict[str, object]]:
    """The host's rules for calls without a guard here; Moorage's for guarded calls that the host allows, too."""
    guarded, conditional, allowed = _guarded(), _conditional_names(), _allowed(caller)
    effective = host.effective(caller)
    host_allowed = frozenset(name for rule in effective if rule.action == _ALLOW for name in rule.names)
    own = (guarded - allowed - conditional) | (guarded & host_allowed)
    for rule in effective:  # what the host refuses although we would allow it keeps the host's error number
        if names := [name for name in rule.names if name not in own]:
            yield rule.to_oci(names)
    yield _allow(sorted(guarded & allowed & host_allowed - conditional))
    yield from (each for each in _conditional(caller, allowed) if set(_names(each)) <= host_allowed)
    yield _refuse(sorted(guarded - allowed - conditional))


def _conditional(caller: Caller, allowed: frozenset[str]) -> Iterator[dict[str, object]]:
    """The rules that depend on arguments."""
    if "clone" not in allowed:
        # s390 has the first two arguments the other way round (clone(2))
        index = 1 if caller.architecture == "s390x" else 0
        yield _allow(["clone"], (index, sum(_NAMESPACE_FLAGS), 0, "SCMP_CMP_MASKED_EQ"))
        for flag in _NAMESPACE_FLAGS:
            yield _refuse(["clone"], (index, flag, flag, "SCMP_CMP_MASKED_EQ"))
        # its flags are in memory, where a filter cannot look: libraries then use clone
        yield ProfileRule(("clone3",), _ERRNO, errno.ENOSYS).to_oci(["clone3"])
    else:
        yield _allow(["clone"])
        yield _allow(["clone3"])
    for value in _PERSONALITIES:
        yield _allow(["personality"], (0, value, 0, "SCMP_CMP_EQ"))
    yield _allow(["socket"], (0, _AF_VSOCK, 0, "SCMP_CMP_NE"))
    yield _refuse(["socket"], (0, _AF_VSOCK, 0, "SCMP_CMP_EQ"))


def _conditional_names() -> frozenset[str]:
    return frozenset(("clone", "clone3", "personality", "socket"))


def _allowed(caller: Caller) -> frozenset[str]:
    rules = _rules()
    made = {*rules["always"], *rules["by_architecture"].get(caller.architecture, ())}
    if not caller.sees_host_processes:
        made |= {*rules["own_processes"]}
    for capability in caller.capabilities & rules["by_capability"].keys():
        made |= {*rules["by_capability"][capability]}
    return frozenset(made)


@cache
def _guarded() -> frozenset[str]:
    """The calls that not every plugin may make, or not with all arguments."""
    rules = _rules()
    by_capability = {name for names in rules["by_capability"].values() for name in names}
    return frozenset({*by_capability, *rules["never"], *rules["own_processes"], *_conditional_names()})


def _allow(names: Iterable[str], *arguments: tuple[int, int, int, str]) -> dict[str, object]:
    return ProfileRule((), _ALLOW, arguments=arguments).to_oci(names)


def _refuse(names: Iterable[str], *arguments: tuple[int, int, int, str]) -> dict[str, object]:
    return ProfileRule((), _ERRNO, errno.EPERM, arguments).to_oci(names)


def _names(rule: Mapping[str, object]) -> list[str]:
    names = rule["names"]
    assert isinstance(names, list)
    return names
