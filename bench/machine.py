"""What a result was measured on, and what processes use of it, from the kernel's own figures."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

__all__ = ("commit", "cpu_seconds", "describe", "forget_peak", "peak_rss_mb", "pss_mb", "rss_mb", "write")

_VERSIONS = {
    "containerd": ("containerd", "--version"),
    "runc": ("runc", "--version"),
    "crun": ("crun", "--version"),
    "dockerd": ("dockerd", "--version"),
    "docker": ("docker", "--version"),
}


def describe() -> dict[str, object]:
    """The machine: cores, memory, kernel, versions."""
    return {
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 10**6,
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        **{name: _first_line(command) for name, command in _VERSIONS.items()},
    }


def _first_line(command: Iterable[str]) -> str:
    try:
        done = subprocess.run([*command], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip().partition("\n")[0]


def commit() -> str:
    """What is measured; with a "+" where files differ from it."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "src"], capture_output=True, check=False)
    return done.stdout.strip() + ("+" if changed.returncode else "")


def pss_mb(pids: Iterable[int]) -> float:
    """Memory of these processes in MB, where what they share counts in parts."""
    return sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in pids) * 1024 / 1e6


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    return _kilobytes(pid, "status", "VmRSS:") * 1024 / 1e6


def forget_peak(pid: int) -> None:
    """Reset ``peak_rss_mb``. Source: proc(5), clear_refs."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss_mb(pid: int) -> float:
    """The most resident memory since then, in MB."""
    return _kilobytes(pid, "status", "VmHWM:") * 1024 / 1e6


def _kilobytes(pid: int, file: str, key: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return 0


def cpu_seconds(pid: int) -> float:
    """Seconds of processor time that a process has used so far; threads that have exited are counted.

    Read from the clock of the process. Source: clock_getcpuclockid(3), whose clock of the scheduler is number 2.

    Raises: OSError for a process that does not exist.
    """
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e9


def write(directory: Path, at: datetime, result: Mapping[str, object], part: str = "") -> Path:
    """Write a result, of one part of what is measured, where no other one is; its path."""
    directory.mkdir(parents=True, exist_ok=True)
    name = "-".join([f"{at:%Y-%m-%d}", *([part] if part else []), str(result["commit"]).removesuffix("+")])
    paths = (directory / f"{name}{number}.json" for number in ("", *(f".{again}" for again in range(2, 1000))))
    path = next(each for each in paths if not each.exists())
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path
