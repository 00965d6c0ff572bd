"""Messages of metrics to values. Pure: no I/O, no policy."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from moorage.containerd._proto import moorage_cgroups_v1_pb2, moorage_cgroups_v2_pb2, moorage_types_pb2
from moorage.containerd.calls.wire import instant
from moorage.containerd.values.metrics import (
    BlockOperations,
    DeviceIO,
    MemoryCounter,
    MetricsV1,
    MetricsV2,
    OtherMetrics,
    TaskMetrics,
)

__all__ = ("metrics", "oom_kills")


def metrics(message: moorage_types_pb2.Metric) -> TaskMetrics:
    """A sample; one of another kind, or that cannot be read, becomes OtherMetrics."""
    name = message.data.type_url.rpartition("/")[2]
    try:
        match name:
            case "io.containerd.cgroups.v1.Metrics":
                return _version_1(message, moorage_cgroups_v1_pb2.Metrics.FromString(message.data.value))
            case "io.containerd.cgroups.v2.Metrics":
                return _version_2(message, moorage_cgroups_v2_pb2.Metrics.FromString(message.data.value))
            case _:
                pass
    except DecodeError:
        pass
    return OtherMetrics(instant(message.timestamp), name, message.data.value)


def oom_kills(message: moorage_types_pb2.Metric) -> int:
    """The number of OOM-killed processes of the control group; 0 if it is unknown."""
    found = metrics(message)
    return 0 if isinstance(found, OtherMetrics) else found.oom_kills


def _version_1(message: moorage_types_pb2.Metric, found: moorage_cgroups_v1_pb2.Metrics) -> MetricsV1:
    return MetricsV1(
        sampled_at=instant(message.timestamp),
        pids=found.pids.current,
        pids_limit=found.pids.limit,
        cpu_ns=found.cpu.usage.total,
        cpu_user_ns=found.cpu.usage.user,
        cpu_kernel_ns=found.cpu.usage.kernel,
        cpu_periods=found.cpu.throttling.periods,
        cpu_throttled_periods=found.cpu.throttling.throttled_periods,
        cpu_throttled_ns=found.cpu.throttling.throttled_time,
        memory=_counter(found.memory.usage),
        swap=_counter(found.memory.swap),
        kernel_memory=_counter(found.memory.kernel),
        rss_bytes=found.memory.total_rss,
        cache_bytes=found.memory.total_cache,
        inactive_file_bytes=found.memory.total_inactive_file,
        io_bytes=_operations(found.blkio.io_service_bytes_recursive),
        io_operations=_operations(found.blkio.io_serviced_recursive),
        oom_kills=found.memory_oom_control.oom_kill,
    )


def _counter(entry: moorage_cgroups_v1_pb2.MemoryEntry) -> MemoryCounter:
    return MemoryCounter(entry.usage, entry.limit, entry.max, entry.failcnt)


def _operations(entries: Iterable[moorage_cgroups_v1_pb2.BlkIOEntry]) -> tuple[BlockOperations, ...]:
    return tuple(BlockOperations(each.major, each.minor, each.op, each.value) for each in entries)


def _version_2(message: moorage_types_pb2.Metric, found: moorage_cgroups_v2_pb2.Metrics) -> MetricsV2:
    return MetricsV2(
        sampled_at=instant(message.timestamp),
        pids=found.pids.current,
        pids_limit=found.pids.limit,
        cpu_us=found.cpu.usage_usec,
        cpu_user_us=found.cpu.user_usec,
        cpu_system_us=found.cpu.system_usec,
        cpu_periods=found.cpu.nr_periods,
        cpu_throttled_periods=found.cpu.nr_throttled,
        cpu_throttled_us=found.cpu.throttled_usec,
        memory_bytes=found.memory.usage,
        memory_limit_bytes=found.memory.usage_limit,
        swap_bytes=found.memory.swap_usage,
        swap_limit_bytes=found.memory.swap_limit,
        anonymous_bytes=found.memory.anon,
        file_bytes=found.memory.file,
        inactive_file_bytes=found.memory.inactive_file,
        io=tuple(
            DeviceIO(each.major, each.minor, each.rbytes, each.wbytes, each.rios, each.wios) for each in found.io.usage
        ),
        memory_low=found.memory_events.low,
        memory_high=found.memory_events.high,
        memory_max=found.memory_events.max,
        ooms=found.memory_events.oom,
        oom_kills=found.memory_events.oom_kill,
    )
