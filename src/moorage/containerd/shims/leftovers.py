"""What a cut-off creation leaves of a shim, of the runtime in it, and of the container's control group.

If the client that creates a task disconnects in the middle, containerd 1.6 undoes the creation, but does not
end the shim in one case of six. Nothing runs in such a shim and it is unreachable; it stays until it is killed. A
runtime that is killed leaves the container's control group and, in it, a first process that never got the order to
continue. That process usually exits with the runtime, whose pipes it reads, but not if it is frozen or never gets the
CPU.
"""

import logging
import os
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.containerd.shims.processes import cgroups_path, control_group, find_shims
from moorage.containerd.supervisor import find_binary
from moorage.containerd.types import RuntimeOptions, Spec
from moorage.host import proc
from moorage.host.cgroups import CGROUP_ROOT, groups_below, pids_of, remove_empty_group, seems_empty, thaw
from moorage.host.directory_tree import remove_tree
from moorage.host.mounts import unmount_all_below
from moorage.host.process_environment import clean_environment
from moorage.host.processes import wait_for_exit

if TYPE_CHECKING:
    from moorage.containerd.client import Client

__all__ = (
    "delete_runtime_state",
    "find_stale_task_directory",
    "is_stale_runtime_state",
    "kill_orphaned_shims",
    "remove_orphaned_cgroups",
    "thaw_groups",
)

log = logging.getLogger(__name__)

_STATE_FILES = ("state.json", "status")
"""Of runc and of crun: what a runtime has recorded of a container."""

_CHECK_INTERVAL = 0.02  # seconds; a runtime that is about to exit in the shim is not our child


async def kill_orphaned_shims(
    client: "Client", id: str, clear_runtime: Callable[[], Awaitable[None]], *, runtime: str, within: float
) -> None:
    """Kill every shim of a container in which nothing runs. Only for a container that containerd has no task of.

    While the runtime (the name of its command) is still at work in a shim, what it creates is removed repeatedly, at
    most for ``within`` seconds. A shim of several containers has the others' processes as children, and is not killed.
    """
    find = partial(find_shims, client.namespace, id, client.address)
    at_work = (runtime, "containerd-shim")
    with anyio.move_on_after(within):
        # Twice, because a list of processes is no snapshot: the one that starts a shim exits when the shim runs.
        while shims := await run_blocking(find) or await run_blocking(find):
            idle = [pid for pid, children in shims if not children]
            for pid in idle:
                await _kill_shim(pid, Path("io.containerd.runtime.v2.task", client.namespace, id))
            if not idle and not any(all(it.startswith(at_work) for it in children) for _, children in shims):
                return
            await clear_runtime()
            await anyio.sleep(_CHECK_INTERVAL)


async def _kill_shim(pid: int, directory_end: Path) -> None:
    """Kill an idle shim, and remove containerd's directory of the task, its working directory, if that still exists."""
    directory = proc.working_directory(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    await wait_for_exit(pid)
    if directory is not None and directory.parts[-3:] == directory_end.parts:
        try:
            await remove_tree(directory)
        except OSError as error:
            # a mount in it is removed with the shim, a moment later, and containerd removes the rest
            log.info("cannot remove %s, the directory of an orphaned shim: %s", directory, error)


async def remove_orphaned_cgroups(spec: Spec, *, runtime: str, within: float, root: Path = CGROUP_ROOT) -> None:
    """Remove the control group that the spec names, in every hierarchy, and kill half set up processes in it.

    Only for a container that containerd has no task of. A group with another process or a group in it stays, and so
    does one that is still in use after ``within`` seconds. A scope is removed by systemd itself, which is waited for.
    """
    groups = _groups(spec, root)
    with anyio.move_on_after(within):
        while half_set_up := await run_blocking(lambda: _half_set_up(groups, runtime)):
            for pid in half_set_up:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for group in groups:
                await run_blocking(partial(thaw, group))
            for pid in half_set_up:
                await wait_for_exit(pid)
        wait_for = seems_empty if ":" in cgroups_path(spec) else remove_empty_group
        while await run_blocking(lambda: _count(wait_for, groups)):  # noqa: ASYNC110 - the kernel has no event for it
            await anyio.sleep(_CHECK_INTERVAL)


def _count(is_in_use: Callable[[Path], bool], groups: Sequence[Path]) -> int:
    return sum(map(is_in_use, groups))


def _groups(spec: Spec, root: Path) -> Sequence[Path]:
    path = control_group(spec)
    return groups_below(path.strip("/"), root) if path and ".." not in Path(path).parts else ()


def _half_set_up(groups: Sequence[Path], runtime: str) -> set[int]:
    """The processes in the groups that are to become a container's first one, and run the runtime's code so far."""
    found = set()
    for group in groups:
        for pid in pids_of(group):
            words = proc.command_line(pid)
            # runc's first process is "runc init"; that of crun has the command line of the crun that made it
            if os.path.basename((words or [""])[0]) == runtime and (words[1:2] == ["init"] or "create" in words):
                found.add(pid)
    return found


async def delete_runtime_state(runtime: RuntimeOptions, namespace: str, id: str) -> None:
    """Remove the runtime's state of a container that containerd does not know. A failure is only logged.

    A directory without the file by which its runtime finds a container is removed here: crun leaves it alone.
    """
    root = Path(runtime.root) / namespace
    if not runtime.root or not await run_blocking((root / id).exists):
        return
    try:
        command = [find_binary(runtime.binary_name or runtime.command), "--root", str(root), "delete", "--force", id]
        done = await anyio.run_process(command, env=clean_environment(), check=False)
        said = done.stderr.decode(errors="replace").strip() if done.returncode else ""
        if not await run_blocking(lambda: any((root / id / name).exists() for name in _STATE_FILES)):
            await run_blocking(lambda: unmount_all_below(root / id))
            await remove_tree(root / id)
            said = ""
    except (OSError, errors.Unsupported) as error:
        said = str(error)
    if said:
        log.warning("cannot delete the runtime's state of %s: %s", id, said)


# The answers when containerd's own directory of an earlier task, or the one of the runtime (runc, crun), still exists.
_STALE_TASK_DIRECTORY = re.compile(r"mkdir (?P<path>/\S+/io\.containerd\.runtime\.v2\.task/\S+): file exists")
_STALE_RUNTIME_STATE = re.compile(r"container with given ID already exists|container `[^`]*` already exists")


def find_stale_task_directory(text: str, namespace: str, id: str) -> Path | None:
    """containerd's directory of an earlier task of this id, if that is what a failure reports."""
    match = _STALE_TASK_DIRECTORY.search(text)
    directory = Path(match["path"]) if match is not None else None
    return directory if directory is not None and directory.parts[-2:] == (namespace, id) else None


def is_stale_runtime_state(text: str) -> bool:
    """Whether a failure reports that the runtime has state of an earlier container of this id."""
    return _STALE_RUNTIME_STATE.search(text) is not None


def thaw_groups(spec: Spec, root: Path = CGROUP_ROOT) -> None:
    """Resume what is frozen in the control group that the spec names (blocking)."""
    for group in _groups(spec, root):
        thaw(group)
