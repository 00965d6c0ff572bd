"""Checks of the containerd that is installed, against this machine and the one that runs. Nothing is changed."""

from collections.abc import Sequence

from moorage import errors
from moorage.containerd.containerd_process import installed_version, version_numbers
from moorage.containerd.supervisor import find_binary
from moorage.doctor.check import Check, CheckTarget
from moorage.doctor.findings import Finding, Verdict
from moorage.host.cgroups import CgroupLayout, cgroup_layout

__all__ = ("CONTAINERD_CHECKS",)

_OWN = ("private", "system")
"""Kinds of containerd that this machine's program is started for."""

_NEW_SHIMS = (2, 0)
"""The first version that records its shims in bootstrap.json, which no earlier one reads."""

_DEPRECATES_CGROUP_V1 = (2, 2)


def check_replacement(target: CheckTarget) -> Sequence[Finding]:
    """Whether plugins survive the next start of containerd: an older one does not find the shims of 2.x."""
    try:
        state = target.get_info().moorage
        installed = installed_version(find_binary("containerd"))
    except errors.MoorageError:  # reported by the checks of the engine, and of the command
        return ()
    running = state.containerd_version
    if state.containerd not in _OWN or not installed or version_numbers(running) < _NEW_SHIMS:
        return ()
    if version_numbers(installed) >= _NEW_SHIMS:
        return ()
    text = f"{running} runs, and {installed} is installed, whose start ends every plugin: it knows no shims of 2.x"
    advice = "install containerd 2.x again, or disable the plugins first"
    return (Finding("containerd's version", Verdict.WARNING, text, advice),)


def check_deprecations(_: CheckTarget) -> Sequence[Finding]:
    """Whether this containerd will stop to support what this machine has."""
    layout = cgroup_layout().layout
    try:
        installed = installed_version(find_binary("containerd"))
    except errors.Unsupported:
        return ()
    if layout is CgroupLayout.V2 or version_numbers(installed) < _DEPRECATES_CGROUP_V1:
        return ()
    text = f"{installed} works with control groups version 1, which it supports until May 2029 at the latest"
    advice = "boot with version 2 (kernel parameter systemd.unified_cgroup_hierarchy=1)"
    return (Finding("containerd's version", Verdict.WARNING, text, advice),)


CONTAINERD_CHECKS: tuple[Check, ...] = (
    ("containerd's version", check_replacement),
    ("containerd's version", check_deprecations),
)
"""In the order in which they are reported."""
