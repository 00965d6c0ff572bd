"""Starts a program that holds the lock on a file for as long as it lives, by which its starter's successors know it."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from moorage.host.inheritance import start_program
from moorage.host.process_identity import FORK_GUARD

__all__ = ("spawn_locked",)


def spawn_locked(
    command: Sequence[str], lock: Path, output: int, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, holding the lock of this file (blocking).

    The kernel says which process holds it, so it is known from the first instant, whatever becomes of its starter.
    What the program starts does not have the lock. Raises: OSError, also where another process holds it.
    """
    with FORK_GUARD:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            return start_program(command, environment=environment, output=output, lock=descriptor)
        except subprocess.SubprocessError as error:
            raise OSError(f"another process holds the lock of {lock}") from error
        finally:
            os.close(descriptor)
