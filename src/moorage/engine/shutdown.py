"""The end of plugins without containerd: by their control groups, their shims, and what is mounted for them.

For a containerd that does not start any more, or that has lost its records. Nothing here asks it for anything.
"""

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.cgroups import thaw
from moorage._lib.threads import run_blocking
from moorage.engine.figures import find_groups
from moorage.engine.mounts import unmount_all_below
from moorage.engine.remains import end_processes, remove_traces
from moorage.engine.store import Record, Store
from moorage.plugins import cgroup_path
from moorage.timeouts import Timeouts

__all__ = ("end_group", "stop_without_containerd")

log = logging.getLogger(__name__)

_POLL = 0.02  # seconds; the kernel tells nobody when a control group of version 1 becomes empty


async def stop_without_containerd(
    store: Store, state: Path, address: str, namespace: str, timeouts: Timeouts
) -> tuple[int, Sequence[str]]:
    """Stop every plugin of a data directory, all at once, and unmount what was mounted for it.

    How many ran, and what failed, as text.

    ``state`` is the run-time directory of a private containerd, whose shims end as well; ``address`` is the socket.
    """
    problems: list[str] = []
    running = 0

    async def stop(record: Record) -> None:
        nonlocal running
        try:
            running += await _stop(record, store, state, address, namespace, timeouts)
        except (errors.MoorageError, OSError) as error:
            problems.append(f"cannot stop plugin {record.name}: {error}")

    loaded = await run_blocking(store.load)
    async with anyio.create_task_group() as tasks:
        for record in loaded.records:
            tasks.start_soon(stop, record)
    return running, problems


async def _stop(record: Record, store: Store, state: Path, address: str, namespace: str, timeouts: Timeouts) -> bool:
    own = record.policy.stop_timeout
    did_run = await end_group(cgroup_path(record.id), timeouts.stop if own is None else own, timeouts.killed)
    await run_blocking(lambda: end_processes(state, record.id, 0.0, timeouts.killed))
    await run_blocking(lambda: remove_traces(address, namespace, record.container))
    await run_blocking(lambda: remove_traces(address, namespace, record.id))
    await run_blocking(lambda: unmount_all_below(store.propagated_mount(record.id)))
    return did_run


async def end_group(path: str, patience: float, within: float) -> bool:
    """End all processes of a control group: TERM, then KILL after ``patience`` seconds; whether there were any.

    Raises: Unavailable where one is there still ``within`` seconds after KILL.
    """
    left = await run_blocking(lambda: _processes(path))
    if not left:
        return False
    for number, bound in ((signal.SIGTERM, patience), (signal.SIGKILL, within)):
        signalled: set[int] = set()
        with anyio.move_on_after(bound):
            while left := await run_blocking(lambda: _processes(path)):
                _signal(path, number, left - signalled)
                signalled |= left
                await anyio.sleep(_POLL)
            return True
        log.info("%d processes of %s are there %g s after %s", len(left), path, bound, signal.Signals(number).name)
    raise errors.Unavailable(f"process {min(left)} is there still {within:g} s after SIGKILL")


def _signal(path: str, number: int, pids: set[int]) -> None:
    for directory in set(find_groups(path).values()) if pids else ():
        thaw(directory)  # no signal arrives before
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _processes(path: str) -> set[int]:
    """The processes in a group and in the groups below it."""
    found: set[int] = set()
    for directory in set(find_groups(path).values()):
        for base, _, _ in os.walk(directory):
            try:
                found |= {int(line) for line in Path(base, "cgroup.procs").read_text().split()}
            except OSError:
                continue  # it went meanwhile
    return found
