"""Checks of what confines plugins on this machine: system call filter, AppArmor, SELinux, user namespaces.

Nothing is changed: a profile that is not loaded yet is only checked by its parser.
"""

import os
import shutil
import subprocess

from moorage import errors
from moorage.doctor.check import Check, CheckTarget, unknown_without_root
from moorage.doctor.findings import Finding, Verdict
from moorage.plugins.apparmor import APPARMOR_PROFILES, PROFILES_FILE, profiles_text
from moorage.runs.host_security import HostSecurity, find_apparmor_parser
from moorage.timeouts import DEFAULT

__all__ = ("SECURITY_CHECKS",)

_CHECK_SECONDS = DEFAULT.apparmor_check
_LEAST_KERNEL = (5, 19)


def check_seccomp(target: CheckTarget) -> Finding:
    """Whether the kernel filters system calls, and by which rules."""
    host = target.security
    subject = "seccomp"
    if not host.has_seccomp():
        advice = "use a kernel with CONFIG_SECCOMP_FILTER; until then plugins run without a system call filter"
        return Finding(subject, Verdict.WARNING, "the kernel has no system call filters", advice)
    path = host.find_seccomp_profile()
    if path is None:
        return Finding(subject, Verdict.OK, "active, with the built-in rules")
    try:
        host.read_seccomp_profile()
    except errors.Invalid as error:
        if isinstance(error.__cause__, PermissionError):
            raise error.__cause__ from None
        return Finding(subject, Verdict.WARNING, f"active, with the built-in rules only: {error}", f"repair {path}")
    return Finding(subject, Verdict.OK, f"active, with the built-in rules restricted by {path}")


def check_apparmor(target: CheckTarget) -> Finding:
    """Whether AppArmor is active, with the profiles of plugins."""
    host = target.security
    subject = "AppArmor"
    if not host.has_apparmor():
        return Finding(subject, Verdict.OK, "not active on this host")
    loaded = host.loaded_apparmor_profiles()
    if not set(APPARMOR_PROFILES) <= loaded.keys():
        return _check_unloaded_profiles(subject, host)
    if lax := [each for each in APPARMOR_PROFILES if loaded[each] != "enforce"]:
        text = f"active, but nothing is denied to plugins: {' and '.join(lax)} in {loaded[lax[0]]} mode"
        advice = f"aa-enforce /etc/apparmor.d/{PROFILES_FILE}, when you have seen what you wanted to see"
        return Finding(subject, Verdict.WARNING, text, advice)
    return Finding(subject, Verdict.OK, f"active, with {', '.join(APPARMOR_PROFILES)}")


def _check_unloaded_profiles(subject: str, host: HostSecurity) -> Finding:
    if os.geteuid() != 0:
        return unknown_without_root(subject, "active; only root can list the loaded profiles")
    if host.are_apparmor_profiles_disabled():
        text = f"active, but plugins run without a profile: /etc/apparmor.d/disable/{PROFILES_FILE} exists"
        return Finding(subject, Verdict.WARNING, text, f"aa-enforce /etc/apparmor.d/{PROFILES_FILE} to undo that")
    parser = find_apparmor_parser()
    if parser is None:
        text = "active, but plugins run without a profile: there is no apparmor_parser"
        return Finding(subject, Verdict.WARNING, text, "install it (Debian: apt install apparmor)")
    if error := _find_profile_error(parser, host):
        text = f"active, but plugins run without a profile: {error}"
        return Finding(subject, Verdict.WARNING, text, "upgrade AppArmor (Debian: apt install apparmor)")
    return Finding(subject, Verdict.OK, "active; the profiles of plugins are loaded at the next start of one")


def _find_profile_error(parser: str, host: HostSecurity) -> str:
    """The error of the parser for the profiles that would be loaded; empty where there is none."""
    command = [parser, "--skip-kernel-load", "--skip-cache", "--quiet"]
    file = host.find_apparmor_file()
    text = file.read_bytes() if file else profiles_text().encode()
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""


def check_selinux(target: CheckTarget) -> Finding:
    """Whether SELinux is active."""
    host = target.security
    if not host.has_selinux():
        return Finding("SELinux", Verdict.OK, "not active on this host")
    mode = "enforcing" if host.is_selinux_enforcing() else "permissive"
    return Finding("SELinux", Verdict.OK, f"{mode}; plugins have the label that moorage policy --selinux-label sets")


def check_user_namespaces(target: CheckTarget) -> Finding:
    """Whether plugins can have user namespaces of their own."""
    host = target.security
    subject = "user namespaces"
    kernel = host.kernel
    if kernel < _LEAST_KERNEL:
        text = (
            f"the kernel ({kernel[0]}.{kernel[1]}) cannot map layers; moorage policy --userns auto needs 5.19 or newer"
        )
        return Finding(subject, Verdict.OK, text)
    if shutil.which("unshare") is None:
        text = "moorage policy --userns auto needs the command unshare"
        return Finding(subject, Verdict.WARNING, text, "install it (Debian: apt install util-linux)")
    return Finding(subject, Verdict.OK, "available to plugins by moorage policy --userns auto")


def check_init_program(target: CheckTarget) -> Finding:
    """Whether there is a static init program."""
    host = target.security
    program = host.init_program()
    text = (
        f"moorage policy --init uses {program}"
        if program
        else "none here; moorage policy --init needs tini or catatonit"
    )
    return Finding("init program", Verdict.OK, text)


SECURITY_CHECKS: tuple[Check, ...] = (
    ("seccomp", check_seccomp),
    ("AppArmor", check_apparmor),
    ("SELinux", check_selinux),
    ("user namespaces", check_user_namespaces),
    ("init program", check_init_program),
)
"""In the order in which they are reported."""
