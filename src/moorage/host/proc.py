"""The only reader of /proc: processes, mounts, namespaces and kernel parameters, as typed frozen values.

A process can exit between any two reads, and can call itself anything. So a function that returns something about a
process returns nothing (None, or an empty value) where the process is gone or may not be read, and no name is trusted
to be text or free of parentheses, blanks and line feeds. Everything here blocks, but only on the kernel's memory.

Source: proc(5), user_namespaces(7).
"""

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from msgspec import Struct

__all__ = (
    "PROC",
    "MountInfo",
    "Pid",
    "ProcessStat",
    "apparmor_label",
    "are_others_hidden",
    "boot_id",
    "cgroup_memberships",
    "child_pids",
    "command_line",
    "command_name",
    "descriptor_path",
    "descriptors",
    "effective_capabilities",
    "environment",
    "executable",
    "has_exited",
    "is_in_user_namespace",
    "kernel_parameter",
    "mount_id",
    "mount_points",
    "mounts",
    "namespace",
    "namespace_path",
    "own_executable",
    "parse_mountinfo",
    "pids",
    "process_stat",
    "root_path",
    "set_oom_score_adjustment",
    "thread_ids",
    "user_ids",
    "working_directory",
    "working_directory_path",
    "write_id_map",
)

PROC = Path("/proc")

Pid = int | Literal["self"]
"""A process id in the pid namespace of the mounted /proc; "self" is the calling process."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_WHOLE_ID_RANGE = ["0", "0", str(2**32 - 1)]
_OCTAL = re.compile(rb"\\([0-7]{3})")


class ProcessStat(Struct, frozen=True):
    """What /proc/PID/stat contains of a process."""

    pid: int
    name: str
    """Its command name, at most 15 bytes; what is not UTF-8 is replaced."""
    state: str
    """One letter, as ps shows it; Z and X are processes that have exited."""
    parent: int
    cpu_seconds: float
    """In user and kernel mode, all its threads together."""
    threads: int
    started_at: datetime
    memory_bytes: int
    """Resident."""
    start_ticks: int = 0
    """When it was started, in ticks since the boot: the same at each reading, unlike ``started_at``."""

    @property
    def has_exited(self) -> bool:
        """Whether it only waits for its parent to collect its exit status."""
        return self.state in "ZX"


class MountInfo(Struct, frozen=True):
    """One line of /proc/PID/mountinfo."""

    root: str
    """The directory of the file system that is mounted."""
    point: str
    type: str
    """Of the file system."""
    super_options: Sequence[str]
    source: str = ""
    """A device, a directory, or any text, as it was given to mount(2)."""


def pids() -> list[int]:
    """Every process that is visible here."""
    return [int(entry) for entry in os.listdir(PROC) if entry.isascii() and entry.isdecimal()]


def are_others_hidden() -> bool:
    """Whether /proc is mounted so that processes of other users cannot be read (hidepid), and this user is not root."""
    return not command_name(1)


def process_stat(pid: Pid) -> ProcessStat | None:
    """The state, parent and usage of a process; None for one that is gone."""
    before, _, after = _read(pid, "stat").rpartition(b")")  # the name may contain parentheses, the rest does not
    fields = after.split()
    if len(fields) < 22:
        return None
    number, _, name = before.partition(b" (")
    # The fields after the name, so fields[0] is the third one of proc(5).
    return ProcessStat(
        pid=int(number),
        name=name.decode(errors="replace"),
        state=fields[0].decode(errors="replace"),
        parent=int(fields[1]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        threads=int(fields[17]),
        started_at=datetime.fromtimestamp(
            time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / _TICKS, UTC
        ),
        memory_bytes=int(fields[21]) * _PAGE_BYTES,
        start_ticks=int(fields[19]),
    )


def command_line(pid: Pid) -> list[str]:
    """The arguments of a process, decoded as paths are; empty for one that is gone, a zombie or a kernel thread.

    A process can write anything there.
    """
    text = _read(pid, "cmdline")
    return [os.fsdecode(word) for word in text.removesuffix(b"\0").split(b"\0")] if text else []


def environment(pid: Pid) -> list[str]:
    """The variables (NAME=VALUE) that a process was started with."""
    return [os.fsdecode(each) for each in _read(pid, "environ").split(b"\0") if each]


def command_name(pid: Pid) -> str:
    """The command name of a process (``comm``), which it can change; empty for one that is gone."""
    return _read(pid, "comm").removesuffix(b"\n").decode(errors="replace")


def executable(pid: Pid) -> str:
    """The path of the program that a process runs, even if it was deleted; empty where that may not be read."""
    return _read_link(pid, "exe").removesuffix(" (deleted)")


def own_executable() -> str:
    """A path that opens the program of the calling process, even if it was deleted."""
    return str(PROC / "self/exe")


def working_directory(pid: Pid) -> Path | None:
    """The working directory of a process; None where that may not be read."""
    text = _read_link(pid, "cwd")
    return Path(text) if text else None


def working_directory_path(pid: Pid) -> Path:
    """A path that leads into the working directory of a process, in its mount namespace, even if it was deleted."""
    return PROC / str(pid) / "cwd"


def has_exited(pid: Pid) -> bool:
    """Whether a process is gone or a zombie."""
    stat = process_stat(pid)
    return stat is None or stat.has_exited


def thread_ids(pid: Pid) -> set[int]:
    """The threads of a process; empty for one that is gone."""
    return {int(entry) for entry in _list(pid, "task")}


def child_pids(pid: Pid) -> list[int]:
    """The children of all threads of a process, zombies included; empty for one that is gone."""
    return [int(child) for thread in _list(pid, "task") for child in _read(pid, f"task/{thread}/children").split()]


def descriptors(pid: Pid = "self") -> list[Path]:
    """A path for each open descriptor of a process, which opens or queries the file itself; empty for one that is gone.

    The list of the calling process includes the descriptor that reads it.
    """
    return [PROC / str(pid) / "fd" / entry for entry in _list(pid, "fd")]


def descriptor_path(descriptor: int) -> str:
    """A path that refers to what a descriptor of the calling process has open, for calls that take only a path."""
    return f"{PROC}/self/fd/{descriptor}"


def apparmor_label(pid: Pid) -> str:
    """What confines a process by AppArmor, with the mode: "moorage-default (enforce)", or "unconfined".

    Empty for a process that is gone, and where the kernel has no AppArmor.
    """
    return _read(pid, "attr/apparmor/current").removesuffix(b"\n").decode(errors="replace")


def user_ids(pid: Pid) -> frozenset[int]:
    """The real, effective, saved and file system user ids of a process; empty for one that is gone.

    The owner of /proc/PID is no substitute: it is root for every process that is not dumpable.
    """
    return frozenset(int(each) for each in _status_field(_read(pid, "status"), b"Uid").split())


def is_process_1_of_a_namespace(pid: Pid) -> bool:
    """Whether a process is process 1 of a pid namespace below that of the calling process."""
    numbers = _status_field(_read(pid, "status"), b"NSpid").split()
    return len(numbers) > 1 and numbers[-1] == b"1"


def effective_capabilities(root: Path = Path("/")) -> int:
    """The effective capabilities of the calling process as a bit mask. Raises: OSError if ``root`` has no /proc."""
    return int(_status_field((root / "proc/self/status").read_bytes(), b"CapEff") or b"0", 16)


def cgroup_memberships(pid: Pid = "self") -> dict[str, str]:
    """The path of the control group of a process in each hierarchy, by controller or name; version 2 is "".

    Empty for a process that is gone.
    """
    found = {}
    for line in _lines(_read(pid, "cgroup")):
        _, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        for controller in controllers.split(b","):
            found[os.fsdecode(controller.removeprefix(b"name="))] = os.fsdecode(path)
    return found


def root_path(pid: Pid) -> str:
    """A path that leads into the root directory of a process, in its mount namespace."""
    return f"{PROC}/{pid}/root"


def namespace(kind: str, pid: Pid = "self") -> str:
    """The identity of a namespace ("mnt", "pid", "user") of a process, as text; empty where that may not be read."""
    return _read_link(pid, f"ns/{kind}")


def namespace_path(kind: str, pid: Pid) -> str:
    """The path by which a namespace of a process is opened or entered, as by nsenter(1)."""
    return f"{PROC}/{pid}/ns/{kind}"


def is_in_user_namespace() -> bool:
    """Whether the calling process is in another user namespace than the initial one (user_namespaces(7))."""
    text = _read("self", "uid_map").decode()
    return bool(text) and text.split() != _WHOLE_ID_RANGE  # a kernel without user namespaces has no such file


def write_id_map(pid: int, base: int, count: int) -> None:
    """Map the first ``count`` user and group ids of the new user namespace of a process to those from ``base`` on.

    Raises: OSError where the kernel refuses.
    """
    for kind in ("uid_map", "gid_map"):
        (PROC / str(pid) / kind).write_text(f"0 {base} {count}\n")


def set_oom_score_adjustment(pid: int, score: int) -> bool:
    """Whether the OOM killer prefers or spares a process from now on; a score below 0 requires CAP_SYS_RESOURCE."""
    with suppress(OSError):
        (PROC / str(pid) / "oom_score_adj").write_text(f"{score}\n")
        return True
    return False


def mounts(pid: Pid = "self") -> list[MountInfo]:
    """What is mounted in the mount namespace of a process, in the order of mounting; empty for one that is gone."""
    return parse_mountinfo(_read(pid, "mountinfo"))


def parse_mountinfo(text: bytes) -> list[MountInfo]:
    """The mounts that the text of a mountinfo file lists, in its order."""
    found = []
    for line in _lines(text):
        left, _, right = line.partition(b" - ")  # an unknown number of optional fields is before it
        fields, rest = left.split(b" "), right.split(b" ")
        options = os.fsdecode(rest[-1]).split(",")
        kind, source = os.fsdecode(rest[0]), _unescaped(rest[1])
        found.append(MountInfo(_unescaped(fields[3]), _unescaped(fields[4]), kind, options, source))
    return found


def mount_id(descriptor: int) -> int:
    """The mount that an open file of this process is in. Source: proc_pid_fdinfo(5). Raises: OSError."""
    for line in _contents(f"{PROC}/self/fdinfo/{descriptor}").splitlines():
        if line.startswith(b"mnt_id:"):
            return int(line[7:])
    raise OSError(errno.ENOTSUP, "the kernel does not report mounts of files")


def mount_points() -> Iterator[str]:
    """Every mount point of this mount namespace, one for each mount; quicker than ``mounts``."""
    for line in _lines(_read("self", "mountinfo")):
        yield _unescaped(line.split(b" ", 5)[4])


def boot_id() -> str:
    """A text that differs for each boot of the kernel."""
    return kernel_parameter("kernel/random/boot_id") or ""


def kernel_parameter(name: str, root: Path = Path("/")) -> str | None:
    """The value of a parameter below /proc/sys ("fs/nr_open"); None where the kernel does not have it."""
    try:
        return (root / "proc/sys" / name).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _read(pid: Pid, name: str) -> bytes:
    try:
        return _contents(f"{PROC}/{pid}/{name}")
    except OSError:
        return b""


def _contents(path: str) -> bytes:
    """Without the buffers of a file object, which take as long as the kernel does. Raises: OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _read_link(pid: Pid, name: str) -> str:
    try:
        return os.readlink(PROC / str(pid) / name)
    except OSError:
        return ""


def _list(pid: Pid, name: str) -> list[str]:
    try:
        return os.listdir(PROC / str(pid) / name)
    except OSError:
        return []


def _status_field(status: bytes, name: bytes) -> bytes:
    """The value of a line "Name: value"; empty where there is none."""
    return next((line.partition(b":")[2] for line in _lines(status) if line.startswith(name + b":")), b"")


def _lines(text: bytes) -> list[bytes]:
    """The lines of a file. Names in it may contain carriage returns, which the kernel, unlike line feeds, leaves as is.

    So ``splitlines`` would let a process that is called "\\rUid:\\t0" pass for one of root's.
    """
    return [line for line in text.split(b"\n") if line]


def _unescaped(field: bytes) -> str:
    """A path of mountinfo, in which blanks, tabs, line feeds and backslashes are octal escapes."""
    if b"\\" in field:
        field = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
    return os.fsdecode(field)
