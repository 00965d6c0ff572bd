"""What a running plugin produces: lines of output, resource usage, and the frames of a command that runs in it."""

from msgspec import UNSET, Struct, UnsetType

from moorage.api.schema.base import ApiObject

__all__ = ("ExecExit", "ExecRequest", "ExecStarted", "LogLine", "PluginStats")


class LogLine(Struct, frozen=True):
    """A line that a plugin wrote."""

    at: str
    """RFC 3339."""
    stream: str
    """stdout or stderr."""
    text: str
    partial: bool | UnsetType = UNSET
    """Whether it continues in the next line of its stream; absent where it does not."""


class PluginStats(ApiObject, frozen=True):
    """Resource usage at one instant; None is what this host does not count, or no limit."""

    id: str
    name: str
    at: str
    cpu_seconds: int | float | None
    """Since its present run began."""
    memory_bytes: int | None
    memory_limit_bytes: int | None
    oom_kills: int | None
    pids: int | None
    pids_limit: int | None
    cpus_limit: int | float | None
    zombies: int | None
    read_bytes: int | None
    written_bytes: int | None
    standby_memory_bytes: int | None = None
    """Of the standby of its next run, beside the memory of the present one; None without a standby."""


class ExecRequest(Struct, frozen=True):
    """The command of the first frame of an exec, and its terminal."""

    command: list[str] | UnsetType = UNSET
    env: list[str] | UnsetType = UNSET
    """NAME=VALUE."""
    tty: bool | UnsetType = UNSET
    rows: int | UnsetType = UNSET
    columns: int | UnsetType = UNSET
    user: str | UnsetType = UNSET
    """NAME|UID[:GROUP|GID]."""
    workdir: str | UnsetType = UNSET


class ExecStarted(ApiObject, frozen=True):
    """The first frame of an answer to exec."""

    id: str
    pid: int


class ExecExit(ApiObject, frozen=True):
    """The last frame of an answer to exec."""

    code: int | None
    """Exit status, 128 + n for signal n; None where it is unknown."""
