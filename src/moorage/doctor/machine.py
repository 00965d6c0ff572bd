"""Checks of the machine: what running plugins needs. Nothing is changed; a trial mount is unmounted again."""

import os
import shutil
import tempfile
from pathlib import Path

from moorage import errors
from moorage.containerd.database import DamagedDatabase, databases, recovery_advice
from moorage.containerd.database import check_databases as find_damage
from moorage.containerd.supervisor import ADDRESS_LIMIT, find_binary
from moorage.doctor.check import Check, CheckTarget, exists, unknown_without_root
from moorage.doctor.findings import Finding, Verdict
from moorage.doctor.runtime import check_runtime
from moorage.host.cgroups import CgroupLayout, cgroup_layout
from moorage.host.mounts import mount_overlay, unmount_all_below
from moorage.systemd.cgroup_driver import decide_driver, read_host

__all__ = ("MACHINE_CHECKS",)

_LONGEST_SOCKET = len("/p/123456789012/s/") + 40  # the directory of a plugin's socket, and a generous file name
_SOCKET_PATH_LIMIT = 107


def check_permissions(_: CheckTarget) -> Finding:
    """Whether this process is root's."""
    if os.geteuid() == 0:
        return Finding("permissions", Verdict.OK, "runs as root")
    return Finding("permissions", Verdict.WRONG, "does not run as root", "run moorage with sudo")


def check_command(name: str, package: str) -> Finding:
    """Whether a command is installed; ``package`` is its Debian package."""
    try:
        return Finding(name, Verdict.OK, find_binary(name))
    except errors.Unsupported:
        return Finding(name, Verdict.WRONG, "is not on this machine", f"install it (Debian: apt install {package})")


def check_control_groups(_: CheckTarget) -> Finding:
    """Whether control groups of one version are mounted."""
    found = cgroup_layout()
    if found.layout is CgroupLayout.V2:
        controllers = " ".join(sorted(found.controllers)) or "no controllers"
        host = read_host()
        if host.lacks_only_bus:
            text = f"version 2, but systemd cannot create those of plugins: {host.problem}"
            return Finding(
                "control groups", Verdict.WARNING, text, "install and start D-Bus (Debian: apt install dbus)"
            )
        creator = "systemd creates" if decide_driver("auto", host) == "systemd" else "the runtime creates"
        return Finding("control groups", Verdict.OK, f"version 2 with {controllers}; {creator} those of plugins")
    missing = [name for name in ("devices", "memory", "pids", "freezer") if name not in found.controllers]
    if not missing:
        return Finding("control groups", Verdict.OK, found.layout.value)
    return Finding(
        "control groups",
        Verdict.WRONG,
        f"not mounted: {', '.join(missing)}",
        "mount them (Debian: apt install cgroupfs-mount)",
    )


def check_data_directory(target: CheckTarget) -> Finding:
    """Whether the file system of the data directory suits, and has space."""
    data = target.data
    existing = _nearest_existing(data)
    if os.statvfs(existing).f_flag & os.ST_NOEXEC:
        return Finding(
            "data directory",
            Verdict.WARNING,
            f"{data} is on a file system that is mounted noexec; plugins run only where overlay works",
            f"mount {_mount_point(existing)} without noexec, or choose another directory",
        )
    free = shutil.disk_usage(existing).free // 2**20
    if free < 100:
        return Finding("data directory", Verdict.WARNING, f"{data} has only {free} MiB left", "free some space")
    return Finding("data directory", Verdict.OK, f"{data} has {free} MiB left")


def check_databases(target: CheckTarget) -> Finding:
    """Whether the databases of the engine's private containerd are whole."""
    root = target.data / "containerd"
    subject = "containerd's databases"
    if not exists(root):
        return Finding(subject, Verdict.OK, f"there are none yet in {root}")
    if os.geteuid() != 0:
        return unknown_without_root(subject, f"{root} is root's")
    try:
        find_damage(root)
    except DamagedDatabase as error:
        damage = error.damage.removesuffix(f"; {recovery_advice(root)}")
        return Finding(subject, Verdict.WRONG, f"{error.path} is damaged: {damage}", recovery_advice(root))
    content = root / "io.containerd.content.v1.content"
    # containerd from 1.7 on makes this directory with the first content, so that an engine without plugins has none.
    has_plugins = any((target.data / "plugins").glob("*"))
    if has_plugins and databases(root)[0].exists() and not content.is_dir():
        advice = "restart the engine, then run moorage upgrade or moorage load for each plugin"
        return Finding(subject, Verdict.WRONG, f"{content}, with the content of all packages, is missing", advice)
    return Finding(subject, Verdict.OK, f"are whole in {root}")


def check_overlay(target: CheckTarget) -> Finding:
    """Whether overlay can be mounted in the data directory."""
    data = target.data
    if os.geteuid() != 0:
        return unknown_without_root("overlay", "only root can mount")
    try:
        with tempfile.TemporaryDirectory(prefix="moorage-doctor-", dir=_nearest_existing(data)) as scratch:
            return _mount_trial_overlay(Path(scratch), data)
    except OSError as error:
        advice = "mount its file system writable, or choose another directory"
        return Finding("overlay", Verdict.WRONG, f"cannot write to {data}: {error.strerror}", advice)


def _mount_trial_overlay(scratch: Path, data: Path) -> Finding:
    lower, seen = scratch / "empty", scratch / "seen"
    lower.mkdir()
    seen.mkdir()
    try:
        mount_overlay(lower, scratch, seen)
    except errors.Unsupported as error:
        return Finding("overlay", Verdict.WARNING, f"{error}; files are copied instead", "use ext4, xfs or btrfs")
    finally:
        unmount_all_below(scratch)
    return Finding("overlay", Verdict.OK, f"works in {data}")


def check_socket_paths(target: CheckTarget) -> Finding:
    """Whether sockets below the run-time directory have paths that are short enough."""
    state = target.exec_root
    length = len(os.fsencode(state))
    limit = min(_SOCKET_PATH_LIMIT - _LONGEST_SOCKET, ADDRESS_LIMIT - len("/containerd/c.sock"))
    if length <= limit:
        return Finding("socket paths", Verdict.OK, f"{state} is short enough")
    return Finding(
        "socket paths",
        Verdict.WRONG,
        f"{state} has {length} bytes; sockets below it may not fit",
        f"use at most {limit}",
    )


def _nearest_existing(path: Path) -> Path:
    while not exists(path):
        path = path.parent
    return path


def _mount_point(path: Path) -> Path:
    while not os.path.ismount(path):
        path = path.parent
    return path


MACHINE_CHECKS: tuple[Check, ...] = (
    ("permissions", check_permissions),
    ("containerd", lambda _: check_command("containerd", "containerd")),
    ("containerd-shim-runc-v2", lambda _: check_command("containerd-shim-runc-v2", "containerd")),
    ("runtime", check_runtime),
    ("control groups", check_control_groups),
    ("data directory", check_data_directory),
    ("containerd's databases", check_databases),
    ("overlay", check_overlay),
    ("socket paths", check_socket_paths),
)
"""In the order in which they are reported."""
