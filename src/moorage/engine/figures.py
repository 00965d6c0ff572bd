"""What a plugin uses of this machine, and what runs in it: read from its control group, of either version.

Everything here blocks, but only on the kernel's memory. Source: the kernel's documentation of cgroup v1 (memory,
cpuacct, pids, blkio) and v2; on a hybrid machine each figure comes from the hierarchy that has its controller.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from moorage.host.beneath import read_below

__all__ = ("Figures", "ProcessView", "find_groups", "find_start", "read_figures", "read_processes")

UNIFIED = ""
"""Name of version 2's hierarchy among the controllers of version 1."""

_NO_LIMIT = 1 << 62
"""From here on version 1 means "no limit" by a number of bytes."""

_TICKS = os.sysconf("SC_CLK_TCK")


class Figures(Struct, frozen=True):
    """One reading. None where the machine does not count it."""

    at: datetime
    cpu_seconds: float | None = None
    """Of all processors, since the group was made (the present run, or an earlier one since the last enable)."""
    memory_bytes: int | None = None
    """Without the page cache that can be dropped at once, as ``docker stats`` counts."""
    memory_limit_bytes: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    cpus_limit: float | None = None
    """Processors' worth of time."""
    zombies: int | None = None
    """Processes that have ended and that their parent has not waited for."""
    read_bytes: int | None = None
    written_bytes: int | None = None
    oom_kills: int | None = None


class ProcessView(Struct, frozen=True):
    """One process of a plugin, as the host sees it."""

    pid: int
    parent: int
    state: str
    """One letter, as ps shows it; Z is one that has ended and that its parent has not waited for."""
    command: str
    memory_bytes: int
    cpu_seconds: float
    threads: int
    started_at: datetime


def find_groups(path: str, mountinfo: str | None = None) -> dict[str, Path]:
    """Controller to directory, for the control group of this path ("/moorage/<id>"); version 2 is ``UNIFIED``."""
    found: dict[str, Path] = {}
    for line in (mountinfo or Path("/proc/self/mountinfo").read_text(errors="surrogateescape")).splitlines():
        fields = line.split(" ")
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        root, point = fields[3], fields[4]
        if kind not in ("cgroup", "cgroup2") or not (root == "/" or path.startswith(f"{root.rstrip('/')}/")):
            continue
        directory = Path(point + path.removeprefix(root.rstrip("/")))
        for controller in options if kind == "cgroup" else (UNIFIED,):
            found.setdefault(controller, directory)
    return found


def read_figures(groups: Mapping[str, Path]) -> Figures:
    """What is counted for a group now. One that is gone has none."""
    zombies = sum(1 for each in read_processes(groups) if each.state == "Z") if groups else None
    used = {**_cpu(groups), **_memory(groups), **_pids(groups), **_io(groups)}
    return Figures(datetime.now(UTC), **used, cpus_limit=_cpus_limit(groups), zombies=zombies)


def read_processes(groups: Mapping[str, Path]) -> list[ProcessView]:
    """The processes of a group and of the groups below it, by pid. One that ends meanwhile is left out."""
    directory = groups.get("pids") or groups.get(UNIFIED) or next(iter(groups.values()), Path("/nowhere"))
    pids = {int(pid) for text in read_below(directory, "cgroup.procs") for pid in text.split()}
    # the kernel lists no zombie there; it is a child of a process that is
    pids |= {child for pid in pids for child in _children(pid)}
    seen = [_process(pid) for pid in sorted(pids)]
    return [each for each in seen if each is not None]


def find_start(pid: int) -> datetime | None:
    """When a process began; None for one that is gone."""
    process = _process(pid)
    return process.started_at if process is not None else None


def _cpu(groups: Mapping[str, Path]) -> dict[str, Any]:
    if (nanoseconds := _number(_file(groups, "cpuacct", "cpuacct.usage"))) is not None:
        return {"cpu_seconds": nanoseconds / 1e9}
    if (microseconds := _table(_file(groups, UNIFIED, "cpu.stat")).get("usage_usec")) is not None:
        return {"cpu_seconds": microseconds / 1e6}
    return {}


def _cpus_limit(groups: Mapping[str, Path]) -> float | None:
    if "cpu" in groups:
        words = [_text(groups["cpu"] / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    else:
        words = _text(_file(groups, UNIFIED, "cpu.max")).split()
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit():
        return None  # "max", or -1
    return int(words[0]) / int(words[1])


def _memory(groups: Mapping[str, Path]) -> dict[str, Any]:
    if "memory" in groups:
        names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file", "memory.oom_control")
        group = groups["memory"]
    else:
        names = ("memory.current", "memory.max", "inactive_file", "memory.events")
        group = groups.get(UNIFIED, Path("/nowhere"))
    usage, limit = _number(group / names[0]), _number(group / names[1])
    if usage is None:
        return {}
    droppable = _table(group / "memory.stat").get(names[2], 0)
    return {
        "memory_bytes": max(usage - droppable, 0),
        "memory_limit_bytes": limit if limit is not None and limit < _NO_LIMIT else None,
        "oom_kills": _table(group / names[3]).get("oom_kill"),
    }


def _pids(groups: Mapping[str, Path]) -> dict[str, Any]:
    group = groups.get("pids") or groups.get(UNIFIED, Path("/nowhere"))
    return {"pids": _number(group / "pids.current"), "pids_limit": _number(group / "pids.max")}


def _io(groups: Mapping[str, Path]) -> dict[str, Any]:
    lines: list[list[str]] = []
    for name in ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"):
        lines = lines or [line.split() for line in _text(_file(groups, "blkio", name)).splitlines()]
    if lines:  # "8:0 Read 4096"
        rows = [line for line in lines if len(line) == 3]
        return {
            field: sum(int(row[2]) for row in rows if row[1] == word)
            for field, word in (("read_bytes", "Read"), ("written_bytes", "Write"))
        }
    text = _text(_file(groups, UNIFIED, "io.stat"))  # "8:0 rbytes=4096 wbytes=0 rios=1 ..."
    if "blkio" not in groups and (groups.get(UNIFIED, Path("/nowhere")) / "io.stat").exists():
        pairs = [word.partition("=") for line in text.splitlines() for word in line.split()[1:]]
        return {
            field: sum(int(value) for key, _, value in pairs if key == word)
            for field, word in (("read_bytes", "rbytes"), ("written_bytes", "wbytes"))
        }
    return {}


def _process(pid: int) -> ProcessView | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    name, _, rest = stat.partition("(")[2].rpartition(") ")
    # Source: proc(5); the fields after the name, from the third on
    fields = rest.split()
    command = " ".join(word for word in words if word) or f"[{name}]"
    return ProcessView(
        pid=pid,
        parent=int(fields[1]),
        state=fields[0],
        command=command,
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        threads=int(fields[17]),
        started_at=datetime.fromtimestamp(
            time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / _TICKS, UTC
        ),
    )


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    with suppress(OSError):
        return [int(child) for task in os.listdir(tasks) for child in _text(tasks / task / "children").split()]
    return []


def _file(groups: Mapping[str, Path], controller: str, name: str) -> Path:
    return groups.get(controller, Path("/nowhere")) / name


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows: Iterator[list[str]] = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
