"""What a task uses, as its control groups count it: of version 1 and of version 2, which count differently."""

from datetime import datetime
from typing import TypeAlias

from msgspec import Struct

__all__ = (
    "BlockOperations",
    "DeviceIO",
    "MemoryCounter",
    "MetricsV1",
    "MetricsV2",
    "OtherMetrics",
    "TaskMetrics",
)


class MemoryCounter(Struct, frozen=True):
    """A counter of the memory controller of version 1, in bytes."""

    usage_bytes: int
    limit_bytes: int
    peak_bytes: int
    failures: int
    """How often the limit was reached."""


class BlockOperations(Struct, frozen=True):
    """What one device did for one kind of operation, as version 1 counts it."""

    major: int
    minor: int
    operation: str
    """``Read``, ``Write``, ``Sync``, ``Async``, ``Total``."""
    value: int


class MetricsV1(Struct, frozen=True):
    """A sample of control groups of version 1. Times are nanoseconds since the task was created."""

    sampled_at: datetime | None
    pids: int
    pids_limit: int
    """0 where there is none."""
    cpu_ns: int
    cpu_user_ns: int
    cpu_kernel_ns: int
    cpu_periods: int
    cpu_throttled_periods: int
    cpu_throttled_ns: int
    memory: MemoryCounter
    swap: MemoryCounter
    kernel_memory: MemoryCounter
    rss_bytes: int
    cache_bytes: int
    inactive_file_bytes: int
    io_bytes: tuple[BlockOperations, ...]
    io_operations: tuple[BlockOperations, ...]
    oom_kills: int


class DeviceIO(Struct, frozen=True):
    """What one device read and wrote, as version 2 counts it."""

    major: int
    minor: int
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int


class MetricsV2(Struct, frozen=True):
    """A sample of control groups of version 2. Times are microseconds since the task was created."""

    sampled_at: datetime | None
    pids: int
    pids_limit: int
    """0 where there is none."""
    cpu_us: int
    cpu_user_us: int
    cpu_system_us: int
    cpu_periods: int
    cpu_throttled_periods: int
    cpu_throttled_us: int
    memory_bytes: int
    memory_limit_bytes: int
    swap_bytes: int
    swap_limit_bytes: int
    anonymous_bytes: int
    file_bytes: int
    inactive_file_bytes: int
    io: tuple[DeviceIO, ...]
    memory_low: int
    memory_high: int
    memory_max: int
    """How often the limit was reached; ``memory_low`` and ``memory_high`` likewise."""
    ooms: int
    oom_kills: int


class OtherMetrics(Struct, frozen=True):
    """A sample of another kind, such as of another runtime, unchanged."""

    sampled_at: datetime | None
    type_url: str
    payload: bytes


TaskMetrics: TypeAlias = MetricsV1 | MetricsV2 | OtherMetrics
