"""Shims that containerd has lost.

Where whoever asked for a task goes away in the middle of its creation, containerd 1.6 undoes it, but forgets to end the
shim in one case of six. Nothing runs in such a shim and nobody can reach it; it stays until it is killed.
"""

import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import anyio

from moorage._lib.pidfd import wait_for_end
from moorage._lib.threads import run_blocking
from moorage.host.beneath import remove_tree
from moorage.host.process_identity import is_trusted

__all__ = ("end_lost_shims", "find_shims")

log = logging.getLogger(__name__)

_LOOK_AGAIN = 0.02  # seconds; a runtime that is about to end in the shim is not our child


async def end_lost_shims(
    address: str, namespace: str, id: str, clear_runtime: Callable[[], Awaitable[None]], *, runtime: str, within: float
) -> None:
    """Kill every shim of a container in which nothing runs. Only for one that containerd has no task of.

    Where the runtime (the name of its command) is still at work in one, what it makes is cleared until it is not, at
    most for ``within`` seconds. A shim that was given other containers too has their processes for children, and is let
    alone.
    """
    at_work = (runtime, "containerd-shim")
    with anyio.move_on_after(within):
        while shims := await run_blocking(lambda: find_shims(namespace, id, address)):
            idle = [pid for pid, children in shims if not children]
            for pid in idle:
                await _end(pid, Path("io.containerd.runtime.v2.task", namespace, id))
            if not idle and not any(all(it.startswith(at_work) for it in children) for _, children in shims):
                return
            await clear_runtime()
            await anyio.sleep(_LOOK_AGAIN)


async def _end(pid: int, directory_end: Path) -> None:
    """Kill an idle shim, and remove containerd's directory of the task, which it works in, where that is left."""
    directory = Path("/nowhere")
    with suppress(FileNotFoundError, ProcessLookupError):
        directory = Path(os.readlink(f"/proc/{pid}/cwd"))
        os.kill(pid, signal.SIGKILL)
    await wait_for_end(pid)
    if directory.parts[-3:] == directory_end.parts:
        try:
            await remove_tree(directory)
        except OSError as error:
            # a mount in it goes with the shim, a moment later, and containerd removes the rest
            log.info("cannot remove %s, left by a lost shim: %s", directory, error)


def find_shims(namespace: str, id: str, address: str | None = None) -> list[tuple[int, list[str]]]:
    """The shims of a container, each with the programs of its child processes; ``address`` names their containerd."""
    wanted = [("-namespace", namespace), ("-id", id)] + ([("-address", address)] if address is not None else [])
    found = []
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        with suppress(OSError):  # it has ended
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            options = list(pairwise(words))
            # whose shim it is, its words say; that it is a shim of root's, only the kernel
            if all(option in options for option in wanted) and is_trusted(pid, ("containerd-shim",)):
                found.append((pid, _children(pid)))
    return found


def _children(pid: int) -> list[str]:
    programs = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
            with suppress(OSError):
                programs.append(_program(child))
    return programs


def _program(pid: str) -> str:
    """How it was called, since runc runs itself from a descriptor and is named by that number meanwhile."""
    word = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    # an ended one that nobody has waited for has only its name
    return os.path.basename(os.fsdecode(word)) or Path(f"/proc/{pid}/comm").read_text().strip()
