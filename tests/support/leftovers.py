"""What containers leave on a machine, looked for in the kernel's own lists. Zombies count as ended."""

import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    state = _read(f"/proc/{pid}/stat").rpartition(b") ")[2][:1]
    return state not in (b"", b"Z", b"X")


def command_line(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/cmdline").split(b"\0")


def shims(namespace: str, id: str | None = None) -> list[int]:
    """The shims of a namespace, or of one container in it."""
    expected = [b"-namespace", namespace.encode()] + ([b"-id", id.encode()] if id else [])
    found = []
    for pid in _processes():
        words = command_line(pid)
        if b"containerd-shim" in words[0] and all(word in words for word in expected) and is_alive(pid):
            found.append(pid)
    return found


def processes_in(cgroup: str) -> list[int]:
    """The live processes in any control group whose path contains this text."""
    return [pid for pid in _processes() if cgroup.encode() in _read(f"/proc/{pid}/cgroup") and is_alive(pid)]


def cgroup_directories(parent: str, prefix: str) -> list[Path]:
    """The control groups of this name's beginning below a parent, in every hierarchy."""
    # glob() fails where the parent goes meanwhile, with the last container of another test
    parents = [CGROUPS / parent, *(CGROUPS / each / parent for each in os.listdir(CGROUPS))]
    found = []
    for directory in parents:
        with suppress(FileNotFoundError, NotADirectoryError):
            found += [directory / name for name in os.listdir(directory) if name.startswith(prefix)]
    return found


def plugin_groups(id: str) -> list[Path]:
    """The control groups of the runs of a plugin, made by either driver, in every hierarchy."""
    return cgroup_directories("moorage", id) + cgroup_directories("moorage.slice", f"moorage-{id}")


def remove_cgroups(parent: str) -> None:
    """Remove an empty parent and what is empty below it."""
    for pattern in (f"{parent}/*", f"*/{parent}/*", parent, f"*/{parent}"):
        for directory in CGROUPS.glob(pattern):
            if directory.is_dir():
                directory.rmdir()


def mounts_below(*tops: Path) -> list[str]:
    """The mount points of this machine at or below any of the directories."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if any(point == str(top) or point.startswith(f"{top}/") for top in tops)]


def files_below(*tops: Path) -> list[str]:
    """Every entry below the directories, sockets and FIFOs included."""
    return [os.path.join(base, name) for top in tops for base, dirs, files in os.walk(top) for name in dirs + files]


def fifos_below(top: Path) -> list[str]:
    return [path for path in files_below(top) if stat.S_ISFIFO(os.lstat(path).st_mode)]


def descriptors() -> Counter[str]:
    """Our own open descriptors by what they are."""
    kinds: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        try:
            kinds[os.readlink(f"/proc/self/fd/{entry}").partition(":[")[0]] += 1
        except OSError:
            pass  # the descriptor of the listing itself
    return kinds
