"""What a control group uses of this machine, and the processes in it, from the files of either version.

Everything here blocks, but only on the kernel's memory. Source: the kernel's documentation of cgroup v1 (memory,
cpuacct, pids, blkio) and v2; on a hybrid machine each figure comes from the hierarchy that has its controller.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from moorage.host import proc
from moorage.host.cgroups import UNIFIED, Hierarchies, find_groups, pids_in

__all__ = ("CgroupUsage", "ProcessView", "read_plugin_usage", "read_processes", "read_usage")

_NO_LIMIT = 1 << 62
"""From here on version 1 means "no limit" by a number of bytes."""
_MISSING = Path("/nonexistent")


class CgroupUsage(Struct, frozen=True):
    """What a group used at one instant. None where the machine does not count it."""

    at: datetime
    cpu_seconds: float | None = None
    """Of all processors, since the group was created: by one run of a plugin."""
    memory_bytes: int | None = None
    """Without the page cache that can be dropped at once, as ``docker stats`` counts."""
    memory_limit_bytes: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    cpus_limit: float | None = None
    """Processors' worth of time."""
    zombies: int | None = None
    """Processes that have exited and whose exit status their parent has not collected."""
    read_bytes: int | None = None
    written_bytes: int | None = None
    oom_kills: int | None = None
    standby_memory_bytes: int | None = None
    """Of the group of the standby of a plugin, which is not part of ``memory_bytes``; None without one."""


class ProcessView(Struct, frozen=True):
    """One process of a plugin, as the host sees it."""

    pid: int
    parent: int
    state: str
    """One letter, as ps shows it; Z is a process that has exited and whose exit status was not collected."""
    command: str
    memory_bytes: int
    cpu_seconds: float
    threads: int
    started_at: datetime
    apparmor: str = ""
    """What confines it by AppArmor, with the mode; empty where the kernel has none."""


def read_usage(groups: Mapping[str, Path]) -> CgroupUsage:
    """What a group uses now, given its directories by controller. All None for one that is gone."""
    zombies = sum(1 for each in read_processes(groups) if each.state == "Z") if groups else None
    used = {**_cpu(groups), **_memory(groups), **_pids(groups), **_io(groups)}
    return CgroupUsage(datetime.now(UTC), **used, cpus_limit=_cpus_limit(groups), zombies=zombies)


def read_plugin_usage(group: str, standby: str, mounted: Hierarchies | None = None) -> CgroupUsage:
    """What the group at a path uses now, and the memory of that of a standby; an empty path for none.

    ``mounted`` is what ``hierarchies`` returned, where many are read.
    """
    usage = read_usage(find_groups(group, mounted))
    if not standby:
        return usage
    return replace(usage, standby_memory_bytes=read_usage(find_groups(standby, mounted)).memory_bytes)


def read_processes(groups: Mapping[str, Path]) -> list[ProcessView]:
    """The processes of a group and of the groups below it, by pid. One that exits meanwhile is left out."""
    directory = groups.get("pids") or groups.get(UNIFIED) or next(iter(groups.values()), _MISSING)
    pids = pids_in([directory])
    # the kernel lists no zombie there; it is a child of a process that is
    pids |= {child for pid in pids for child in proc.child_pids(pid)}
    seen = [_process(pid) for pid in sorted(pids)]
    return [each for each in seen if each is not None]


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
        group = groups.get(UNIFIED, _MISSING)
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
    group = groups.get("pids") or groups.get(UNIFIED, _MISSING)
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
    if "blkio" not in groups and (groups.get(UNIFIED, _MISSING) / "io.stat").exists():
        pairs = [word.partition("=") for line in text.splitlines() for word in line.split()[1:]]
        return {
            field: sum(int(value) for key, _, value in pairs if key == word)
            for field, word in (("read_bytes", "rbytes"), ("written_bytes", "wbytes"))
        }
    return {}


def _process(pid: int) -> ProcessView | None:
    stat = proc.process_stat(pid)
    if stat is None:
        return None
    words = " ".join(word for word in proc.command_line(pid) if word) or f"[{stat.name}]"
    return ProcessView(
        pid=pid,
        parent=stat.parent,
        state=stat.state,
        command=words.encode(errors="surrogateescape").decode(errors="replace"),
        memory_bytes=stat.memory_bytes,
        cpu_seconds=stat.cpu_seconds,
        threads=stat.threads,
        started_at=stat.started_at,
        apparmor=proc.apparmor_label(pid),
    )


def _file(groups: Mapping[str, Path], controller: str, name: str) -> Path:
    return groups.get(controller, _MISSING) / name


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
