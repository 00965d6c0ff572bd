"""What confines plugins on this machine: the system call filter, AppArmor, SELinux, user namespaces. Everything blocks.

Nothing is changed: a profile that is not loaded yet is only checked by its parser.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator

from moorage import errors
from moorage.engine.findings import Finding, Verdict
from moorage.engine.host_security import HostSecurity, find_apparmor_parser
from moorage.plugins.apparmor import PROFILES, profile_text

__all__ = ("examine_security",)

_CHECK_SECONDS = 20.0
_LEAST_KERNEL = (5, 19)


def examine_security(host: HostSecurity) -> Iterator[Finding]:
    """Report what is active on this host."""
    checks: tuple[Callable[[HostSecurity], Finding], ...] = (
        _seccomp,
        _apparmor,
        _selinux,
        _user_namespaces,
        _init_program,
    )
    for check in checks:
        yield check(host)


def _seccomp(host: HostSecurity) -> Finding:
    subject = "seccomp"
    if not host.has_seccomp():
        advice = "use a kernel with CONFIG_SECCOMP_FILTER; until then plugins run without a system call filter"
        return Finding(subject, Verdict.DOUBTFUL, "the kernel has no system call filters", advice)
    path = host.find_seccomp_profile()
    if path is None:
        return Finding(subject, Verdict.GOOD, "active, with the built-in rules")
    try:
        host.read_seccomp_profile()
    except errors.Invalid as error:
        return Finding(subject, Verdict.DOUBTFUL, f"active, with the built-in rules only: {error}", f"repair {path}")
    return Finding(subject, Verdict.GOOD, f"active, with the built-in rules narrowed by {path}")


def _apparmor(host: HostSecurity) -> Finding:
    subject = "AppArmor"
    if not host.has_apparmor():
        return Finding(subject, Verdict.GOOD, "not active on this host")
    if missing := set(PROFILES) - host.loaded_apparmor_profiles():
        parser = find_apparmor_parser()
        if parser is None:
            text = "active, but plugins run without a profile: there is no apparmor_parser"
            return Finding(subject, Verdict.DOUBTFUL, text, "install it (Debian: apt install apparmor)")
        for name in sorted(missing):
            if words := _parse(parser, name):
                text = f"active, but plugins run without a profile: {words}"
                return Finding(subject, Verdict.DOUBTFUL, text, "upgrade AppArmor (Debian: apt install apparmor)")
        return Finding(subject, Verdict.GOOD, "active; the profiles of plugins are loaded at the first start of one")
    return Finding(subject, Verdict.GOOD, f"active, with {' and '.join(PROFILES)}")


def _parse(parser: str, name: str) -> str:
    """What the parser has against a profile; empty where it takes it."""
    command = [parser, "--skip-kernel-load", "--skip-cache", "--quiet"]
    try:
        done = subprocess.run(
            command, input=profile_text(name).encode(), capture_output=True, timeout=_CHECK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""


def _selinux(host: HostSecurity) -> Finding:
    if not host.has_selinux():
        return Finding("SELinux", Verdict.GOOD, "not active on this host")
    mode = "enforcing" if host.is_selinux_enforcing() else "permissive"
    return Finding("SELinux", Verdict.GOOD, f"{mode}; plugins have the label that moorage policy --selinux-label sets")


def _user_namespaces(host: HostSecurity) -> Finding:
    subject = "user namespaces"
    kernel = host.kernel
    if kernel < _LEAST_KERNEL:
        text = (
            f"the kernel ({kernel[0]}.{kernel[1]}) cannot map layers; moorage policy --userns auto needs 5.19 or newer"
        )
        return Finding(subject, Verdict.GOOD, text)
    if shutil.which("unshare") is None:
        text = "moorage policy --userns auto needs the command unshare"
        return Finding(subject, Verdict.DOUBTFUL, text, "install it (Debian: apt install util-linux)")
    return Finding(subject, Verdict.GOOD, "available to plugins by moorage policy --userns auto")


def _init_program(host: HostSecurity) -> Finding:
    program = host.init_program()
    text = (
        f"moorage policy --init uses {program}"
        if program
        else "none here; moorage policy --init needs tini or catatonit"
    )
    return Finding("init program", Verdict.GOOD, text)
