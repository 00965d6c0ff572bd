"""What a machine lacks for running plugins, and how to mend it. Looks only; a trial mount is taken down again.

Everything here blocks.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from moorage import errors
from moorage.containerd.database import DamagedDatabase, check_databases, databases, way_out
from moorage.containerd.supervisor import ADDRESS_LIMIT, find_binary
from moorage.engine.findings import Finding, Verdict
from moorage.engine.mounts import mount_overlay, unmount_all_below

__all__ = ("examine",)

_LONGEST_SOCKET = len("/p/123456789012/s/") + 40  # the directory of a plugin's socket, and a generous file name
_SOCKET_PATH_LIMIT = 107


def examine(data: Path, state: Path) -> Iterator[Finding]:
    """Look at everything that running plugins needs, with their data and run-time directories below these paths."""
    data, state = Path(os.path.abspath(data)), Path(os.path.abspath(state))
    checks: tuple[Callable[[], Finding], ...] = (
        _permissions,
        lambda: _command("containerd", "containerd"),
        lambda: _command("containerd-shim-runc-v2", "containerd"),
        lambda: _command("runc", "runc"),
        _control_groups,
        lambda: _data_directory(data),
        lambda: _databases(data / "containerd"),
        lambda: _overlay(data),
        lambda: _socket_paths(state),
    )
    for check in checks:
        yield check()


def _permissions() -> Finding:
    if os.geteuid() == 0:
        return Finding("permissions", Verdict.GOOD, "runs as root")
    return Finding("permissions", Verdict.BAD, "does not run as root", "run moorage with sudo")


def _command(name: str, package: str) -> Finding:
    try:
        return Finding(name, Verdict.GOOD, find_binary(name))
    except errors.Unsupported:
        return Finding(name, Verdict.BAD, "is not on this machine", f"install it (Debian: apt install {package})")


def _control_groups() -> Finding:
    root = Path("/sys/fs/cgroup")
    controllers = root / "cgroup.controllers"
    if controllers.exists():
        return Finding("control groups", Verdict.GOOD, f"version 2 with {controllers.read_text().strip() or 'nothing'}")
    missing = [name for name in ("devices", "memory", "pids", "freezer") if not os.path.ismount(root / name)]
    if not missing:
        kind = "hybrid" if os.path.ismount(root / "unified") else "version 1"
        return Finding("control groups", Verdict.GOOD, kind)
    return Finding(
        "control groups",
        Verdict.BAD,
        f"not mounted: {', '.join(missing)}",
        "mount them (Debian: apt install cgroupfs-mount)",
    )


def _data_directory(data: Path) -> Finding:
    place = _existing(data)
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        return Finding(
            "data directory",
            Verdict.DOUBTFUL,
            f"{data} is on a file system that is mounted noexec; plugins run only where overlay works",
            f"mount {_mount_point(place)} without noexec, or choose another directory",
        )
    free = shutil.disk_usage(place).free // 2**20
    if free < 100:
        return Finding("data directory", Verdict.DOUBTFUL, f"{data} has only {free} MiB left", "free some space")
    return Finding("data directory", Verdict.GOOD, f"{data} has {free} MiB left")


def _databases(root: Path) -> Finding:
    """Of the containerd that an engine with this data directory starts."""
    subject = "containerd's databases"
    if not root.is_dir():
        return Finding(subject, Verdict.GOOD, f"there are none yet in {root}")
    if os.geteuid() != 0:
        return Finding(subject, Verdict.DOUBTFUL, "cannot be read without root", "run moorage with sudo")
    try:
        check_databases(root)
    except DamagedDatabase as error:
        damage = error.damage.removesuffix(f"; {way_out(root)}")
        return Finding(subject, Verdict.BAD, f"{error.path} is damaged: {damage}", way_out(root))
    content = root / "io.containerd.content.v1.content"
    if databases(root)[0].exists() and not content.is_dir():
        advice = "restart the engine, then run moorage upgrade or moorage load for each plugin"
        return Finding(subject, Verdict.BAD, f"{content}, with the content of all packages, is missing", advice)
    return Finding(subject, Verdict.GOOD, f"are whole in {root}")


def _overlay(data: Path) -> Finding:
    if os.geteuid() != 0:
        return Finding("overlay", Verdict.DOUBTFUL, "cannot be tried without root", "run moorage with sudo")
    try:
        with tempfile.TemporaryDirectory(prefix="moorage-doctor-", dir=_existing(data)) as scratch:
            return _try_overlay(Path(scratch), data)
    except OSError as error:
        advice = "mount its file system writable, or choose another directory"
        return Finding("overlay", Verdict.BAD, f"nothing can be made in {data}: {error.strerror}", advice)


def _try_overlay(scratch: Path, data: Path) -> Finding:
    lower, seen = scratch / "empty", scratch / "seen"
    lower.mkdir()
    seen.mkdir()
    try:
        mount_overlay(lower, scratch, seen)
    except errors.Unsupported as error:
        return Finding("overlay", Verdict.DOUBTFUL, f"{error}; files are copied instead", "use ext4, xfs or btrfs")
    finally:
        unmount_all_below(scratch)
    return Finding("overlay", Verdict.GOOD, f"works in {data}")


def _socket_paths(state: Path) -> Finding:
    length = len(os.fsencode(state))
    limit = min(_SOCKET_PATH_LIMIT - _LONGEST_SOCKET, ADDRESS_LIMIT - len("/containerd/c.sock"))
    if length <= limit:
        return Finding("socket paths", Verdict.GOOD, f"{state} is short enough")
    return Finding(
        "socket paths", Verdict.BAD, f"{state} has {length} bytes; sockets below it may not fit", f"use at most {limit}"
    )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _mount_point(path: Path) -> Path:
    while not os.path.ismount(path):
        path = path.parent
    return path
