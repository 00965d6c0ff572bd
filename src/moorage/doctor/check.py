"""A check of ``moorage doctor``, run so that one that fails does not stop the others."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from msgspec import Struct

from moorage.doctor.findings import Finding, Verdict
from moorage.runs.host_security import HostSecurity

__all__ = ("Check", "CheckTarget", "ContainerdState", "exists", "run_checks", "unknown_without_root")


class EngineStatus(Protocol):
    """The part of the answer to GET /info that is checked."""

    @property
    def server_version(self) -> str:
        """The version of the engine."""

    @property
    def moorage(self) -> "ContainerdState":
        """What Moorage adds to Docker's answer."""


class ContainerdState(Protocol):
    """The part of Moorage's own information that is checked."""

    @property
    def containerd(self) -> str:
        """private, system, or an address."""

    @property
    def containerd_address(self) -> str:
        """The socket of containerd."""

    @property
    def containerd_version(self) -> str:
        """Empty while containerd is unavailable."""

    @property
    def problem(self) -> str:
        """Why plugins cannot be started or stopped; empty when they can."""

    @property
    def runtime(self) -> str:
        """The OCI runtime of new plugins, by name or path; empty while containerd is unavailable."""

    @property
    def runtime_version(self) -> str:
        """The first line of its --version."""

    @property
    def runtime_reason(self) -> str:
        """Why it was chosen."""

    @property
    def notices(self) -> Sequence[str]:
        """What the engine found at its start and did not touch."""


GetInfo = Callable[[], EngineStatus]
"""GET /info of the engine.

Raises: Denied for a user who may not use its socket.
Raises: Unavailable where it does not answer.
"""


class CheckTarget(Struct, frozen=True):
    """The engine and the machine that are checked."""

    data: Path
    """Data directory of the engine; absolute."""
    exec_root: Path
    """Run-time directory of the engine; absolute."""
    socket: Path
    """Of the engine's API."""
    get_info: GetInfo
    security: HostSecurity = HostSecurity()
    """Of this machine."""


Check: TypeAlias = tuple[str, Callable[[CheckTarget], Finding | Sequence[Finding]]]
"""A subject, and a function (blocking) that returns what it found about it.

Raises: PermissionError where only root can find out.
Raises: OSError where something cannot be read.
"""

_AS_ROOT = "run moorage with sudo"


def run_checks(checks: Sequence[Check], target: CheckTarget) -> Iterator[Finding]:
    """The findings of these checks in order; unknown is the finding where the operating system refuses to answer."""
    for subject, check in checks:
        try:
            found = check(target)
        except PermissionError as error:
            found = unknown_without_root(subject, _as_text(error))
        except OSError as error:
            advice = "fix that, then check again"
            found = Finding(subject, Verdict.WARNING, f"unknown: {_as_text(error)}", advice)
        yield from (found,) if isinstance(found, Finding) else found


def unknown_without_root(subject: str, cause: str) -> Finding:
    """The finding where only root can find out."""
    return Finding(subject, Verdict.WARNING, f"unknown, needs root ({cause})", _AS_ROOT)


def exists(path: Path) -> bool:
    """Whether something has this path, a link that leads nowhere included.

    Raises: PermissionError where this user cannot find out, for which ``os.path.exists`` would return False.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _as_text(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
