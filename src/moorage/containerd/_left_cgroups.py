"""What a runtime made of a container and was killed before it could use or remove it: its control group and, in it, a
first process that was never told to go on.

That process usually ends with the runtime, whose pipes it reads, but not where it is frozen or never gets the CPU.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from moorage._lib.cgroups import thaw
from moorage._lib.pidfd import wait_for_end
from moorage._lib.threads import run_blocking
from moorage.containerd.types import Spec

_ROOT = Path("/sys/fs/cgroup")
_LOOK_AGAIN = 0.02  # seconds; a group is in use for a moment after its last process


async def clear_left_cgroups(spec: Spec, *, runtime: str, within: float, root: Path = _ROOT) -> None:
    """Remove the control group that the spec names, in every hierarchy, with what a runtime left half set up in it.

    Only for a container that containerd has no task of. A group with another process or a group in it stays, and so
    does one that is still in use after ``within`` seconds. Names in systemd's form are left to systemd.
    """
    groups = _groups(spec, root)
    with anyio.move_on_after(within):
        while left := await run_blocking(lambda: _half_set_up(groups, runtime)):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for group in groups:
                await run_blocking(partial(thaw, group))
            for pid in left:
                await wait_for_end(pid)
        while await run_blocking(lambda: _remove(groups)):  # noqa: ASYNC110 - the kernel tells nobody
            await anyio.sleep(_LOOK_AGAIN)


def _groups(spec: Spec, root: Path) -> Sequence[Path]:
    linux = spec.get("linux")
    path: Any = linux.get("cgroupsPath") if isinstance(linux, Mapping) else None
    if not isinstance(path, str) or not path.startswith("/") or ":" in path or ".." in Path(path).parts:
        return ()
    name = path.strip("/")
    return (root / name, *root.glob(f"*/{name}")) if name else ()


def _half_set_up(groups: Sequence[Path], runtime: str) -> set[int]:
    """The processes in the groups that are to become a container's first one, and run the runtime's code so far."""
    found = set()
    for group in groups:
        for pid in _processes(group):
            with suppress(OSError):  # it has ended
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if os.path.basename(words[0]) == runtime and words[1:2] == ["init"]:
                    found.add(pid)
    return found


def _processes(group: Path) -> list[int]:
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _remove(groups: Sequence[Path]) -> bool:
    """Whether one stays though nothing is seen in it, so that it is worth another look."""
    is_in_use = False
    for group in groups:
        try:
            os.rmdir(group)
        except FileNotFoundError:
            pass
        except OSError:
            is_in_use = is_in_use or _seems_empty(group)
    return is_in_use


def _seems_empty(group: Path) -> bool:
    try:
        return not _processes(group) and not any(entry.is_dir() for entry in group.iterdir())
    except OSError:
        return False
