"""What the core of a plugin decides that its shell has to do. Values only."""

from typing import TypeAlias

from msgspec import Struct

from moorage.proxy.core.answers import Answer

__all__ = (
    "EXITED",
    "Abort",
    "Action",
    "Call",
    "Forget",
    "Forward",
    "Notify",
    "Release",
    "Reply",
    "Save",
    "Verify",
)


EXITED = "the plugin has exited"
"""The problem of a check of paths during which the plugin's process exited."""


class Call(Struct, frozen=True):
    """A call of a consumer whose head has been read, with its body where it is one that is read whole."""

    id: int
    path: str
    body: bytes | None
    """None for a stream, whose body is read while it is forwarded."""
    consumer: str
    """As text for people: ``podman (pid 812)``; empty where ``calls.needs_consumer`` says so."""

    @property
    def is_podman(self) -> bool:
        """Whether podman calls."""
        return self.consumer.startswith("podman")


class Forward(Struct, frozen=True):
    """Send a call to the plugin. Events: ``answered`` or ``broken``, of a stream ``started`` and ``finished``."""

    id: int
    """Of this attempt, which later events name."""
    call: int | None
    """The consumer's call; None for the proxy's own."""
    path: str
    body: bytes | None
    """None for a stream, whose body passes through."""


class Abort(Struct, frozen=True):
    """Close the connection of an attempt. No event about it has an effect any more."""

    id: int


class Reply(Struct, frozen=True):
    """Answer a consumer's call. Where its answer has begun as a stream, its connection is closed instead."""

    call: int
    answer: Answer


class Verify(Struct, frozen=True):
    """Compare a path inside the plugin with the host's path, in a thread. Event: ``verified``."""

    id: int
    pid: int
    inside: str
    outside: str
    below: str
    """The host's directory that the rule names; a mount point counts below it only."""
    needs_mount: bool
    """Whether it must be in a file system that is mounted there, and no placeholder, as it was before."""


class Release(Struct, frozen=True):
    """Unmount placeholders and dead mounts at exactly these paths. Event: ``released``."""

    id: int
    paths: tuple[str, ...]


class Notify(Struct, frozen=True):
    """Report to the engine what happened once."""

    action: str
    attributes: dict[str, str]


class Forget(Struct, frozen=True):
    """Delete the ledger's file."""


class Save(Struct, frozen=True):
    """Write the ledger to its file, and then do what relies on it.

    Where that fails, do ``otherwise`` instead, and report it by the event ``unsaved`` with this action.
    """

    ledger: bytes
    then: tuple["Action", ...] = ()
    otherwise: tuple["Action", ...] = ()
    attempt: int = 0
    """The attempt that ``then`` would have made."""
    mount: tuple[str, str] | None = None
    """The mount that ``then`` would have reported to its consumer."""


Action: TypeAlias = Forward | Abort | Reply | Verify | Release | Notify | Forget | Save
