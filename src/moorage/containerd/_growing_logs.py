"""Logs that containerd and its runtime append to without bound; each is cut when it has grown (case 220).

Both are opened for appending, so that what is written after a cut begins at the new end. Everything but
``keep_log_bounded`` blocks.
"""

import logging
import os
import shutil
from pathlib import Path

import anyio

from moorage._lib.threads import run_blocking

__all__ = ("LOG_LIMIT", "RUNTIME_LOG_LIMIT", "cut_log", "cut_runtime_log", "keep_log_bounded")

log = logging.getLogger(__name__)

LOG_LIMIT = 10 * 1024 * 1024
"""Bytes of containerd's log before it is cut; what it had is kept beside it, once."""
RUNTIME_LOG_LIMIT = 16 * 1024
"""Bytes of the runtime's log of one container: about a hundred failures of ``exec``, of which the last is read."""

_PAUSE = 60.0  # seconds between two checks
_TASKS = "io.containerd.runtime.v2.task"


async def keep_log_bounded(path: Path) -> None:
    """Cut the log of a running containerd whenever it has grown, until cancelled."""
    while True:
        await anyio.sleep(_PAUSE)
        try:
            await run_blocking(lambda: cut_log(path))
        except OSError as error:
            log.warning("cannot cut %s: %s", path, error)


def cut_log(path: Path) -> None:
    """Empty a log that has more than LOG_LIMIT bytes, and keep those in ``<path>.1``. Raises: OSError."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)


def cut_runtime_log(pid: int, container: str) -> None:
    """Empty the runtime's log of a container whose first process is ``pid``, where it has grown.

    The shim, the parent of that process, works in the directory of a task, and those of all others are beside it.
    Nothing happens where the log is not found there.
    """
    try:
        shim = int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
        directory = Path(os.readlink(f"/proc/{shim}/cwd"))
        path = directory.with_name(container) / "log.json"
        if _TASKS in directory.parts and path.stat().st_size > RUNTIME_LOG_LIMIT:
            os.truncate(path, 0)
    except (OSError, ValueError, IndexError) as error:
        log.debug("cannot check the log of the runtime of %s: %s", container, error)
