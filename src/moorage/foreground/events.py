"""What ``moorage run`` reports while a plugin runs: values, without a word on how they are shown."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from msgspec import Struct

from moorage.executor import Exit
from moorage.runs.plan import RunPlan
from moorage.runs.readiness import Activation

__all__ = (
    "ChangesRetained",
    "DirectoryChanged",
    "ForegroundEvent",
    "Report",
    "RunExited",
    "RunOutput",
    "RunReady",
    "RunRemoved",
    "RunStarted",
    "RunWaiting",
)


class RunStarted(Struct, frozen=True):
    """The process runs."""

    plan: RunPlan


class RunReady(Struct, frozen=True):
    """The socket accepts connections."""

    seconds: float
    """Since the start."""
    activation: Activation | None
    """What the plugin implements; None for one that does not speak HTTP, which is not called."""


class RunOutput(Struct, frozen=True):
    """Lines of output that were read at once."""

    stream: str
    """stdout or stderr."""
    at: datetime
    lines: tuple[str, ...]
    """Without line ends. A line of more than 64 KiB comes in pieces."""


class RunExited(Struct, frozen=True):
    """The process exited."""

    exit: Exit
    reason: str = ""
    """Why it could not run, where that is known: the runtime only knows when the kernel refuses to run the file."""


class ChangesRetained(Struct, frozen=True):
    """Everything is removed, except what the plugin has written to its root file system."""

    changes: Path


class RunRemoved(Struct, frozen=True):
    """Everything that was made for the run is removed, except for retained changes. The last event of a run."""


class RunWaiting(Struct, frozen=True):
    """Nothing runs until the directory changes."""

    directory: Path
    failure: str
    """Why the plugin could not be run; empty where it has exited."""


class DirectoryChanged(Struct, frozen=True):
    """The directory has changed, and the plugin is run again."""

    directory: Path


ForegroundEvent: TypeAlias = (
    RunStarted | RunReady | RunOutput | RunExited | ChangesRetained | RunRemoved | RunWaiting | DirectoryChanged
)

Report = Callable[[ForegroundEvent], Awaitable[None]]
"""Shows an event. Raises: OSError where it cannot be shown, which stops the run."""
