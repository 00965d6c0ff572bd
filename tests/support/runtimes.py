"""The OCI runtime of the containers that tests create: MOORAGE_RUNTIME, as `moorage serve` takes it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support import leftovers
from support.foreground import wait_until

__all__ = ("VERSION_1_GROUPS", "refuses_hybrid_groups", "runtime_command", "version_1_groups")

VERSION_1_GROUPS = Path(__file__).resolve().parents[2] / "scripts/_version_1_groups"
"""Runs a command where it sees no control groups of version 2; see its head."""


def runtime_command() -> str:
    """Its name or path, for tests that drive containerd without an engine."""
    requested = os.environ["MOORAGE_RUNTIME"]  # tests/conftest.py sets a default
    return requested if requested != "auto" else "runc"


def refuses_hybrid_groups() -> bool:
    """Whether this machine has controllers of both versions, so that crun runs nothing."""
    try:
        return Path("/sys/fs/cgroup/unified/cgroup.controllers").read_text().strip() != ""
    except OSError:
        return False


@contextmanager
def version_1_groups() -> Iterator[list[str]]:
    """The beginning of commands that see no controllers of version 2 beside those of version 1.

    Nothing where that is so anyway. Otherwise the commands run in a mount namespace, which ends with the block.
    """
    if not refuses_hybrid_groups():
        yield []
        return
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        str(VERSION_1_GROUPS),
        "sh",
        "-c",
        "echo ready; exec sleep 100000",
    ]
    with _parent_group(), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--"]
        finally:
            holder.kill()


@contextmanager
def _parent_group() -> Iterator[None]:
    """No engine removes the control group above all plugins until the block ends.

    Engines exclude each other by a lock of the directory of all control groups, which is another one in the namespace.
    """
    used = [each / "moorage" / f"test-{os.getpid()}" for each in leftovers.CGROUPS.iterdir() if each.name != "unified"]
    for group in used:
        wait_until(lambda group=group: _make(group), f"{group} is there")  # type: ignore[misc]
    try:
        yield
    finally:
        for group in used:
            group.rmdir()
            with suppress(OSError):  # of another engine
                group.parent.rmdir()


def _make(group: Path) -> bool:
    with suppress(FileNotFoundError, FileExistsError):  # an engine removes the parent
        group.parent.mkdir(exist_ok=True)
        group.mkdir()
    return group.is_dir()
