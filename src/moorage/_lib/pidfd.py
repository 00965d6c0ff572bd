"""The end of a process that is not our child."""

import os

import anyio

__all__ = ("wait_for_end",)


async def wait_for_end(pid: int) -> None:
    """Return when the process with this pid has ended, at once where there is none.

    Within a millisecond of the end and without polling. A pid that was given to another process meanwhile makes this
    wait for the wrong one, so the return is a hint to look, never a proof.

    Raises: OSError where the kernel refuses a descriptor (too many are open).
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(descriptor)
    finally:
        os.close(descriptor)
