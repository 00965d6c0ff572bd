"""Keeps the copies of the host's network files current for as long as plugins may use them."""

import logging
from collections.abc import Sequence

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.host.network_files import NetworkFiles

__all__ = ("keep_current",)

log = logging.getLogger(__name__)


async def keep_current(files: NetworkFiles, period: float) -> None:
    """Refresh the copies, if they exist, every ``period`` seconds; without end. Logs what is wrong once."""
    known: Sequence[str] = ()
    while True:
        try:
            problems = await run_blocking(lambda: files.refresh() if files.exist() else ())
        except errors.MoorageError as error:
            problems = [str(error)]
        for problem in problems:
            if problem not in known:
                log.warning("%s", problem)
        known = problems
        await anyio.sleep(period)
