"""Values to protobuf messages and back. Pure: no I/O, no policy."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
from google.protobuf.message import DecodeError

from moorage import errors
from moorage.containerd import types
from moorage.containerd._proto import (
    any_pb2,
    moorage_containers_pb2,
    moorage_content_pb2,
    moorage_images_pb2,
    moorage_process_pb2,
    moorage_runc_pb2,
    moorage_snapshots_pb2,
    moorage_types_pb2,
    timestamp_pb2,
)

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
RUNC_OPTIONS_TYPE = "containerd.runc.v1.Options"


@cache
def _statuses() -> dict[int, types.Status]:
    process = moorage_process_pb2
    return {
        process.CREATED: types.Status.CREATED,
        process.RUNNING: types.Status.RUNNING,
        process.STOPPED: types.Status.STOPPED,
        process.PAUSED: types.Status.PAUSED,
        process.PAUSING: types.Status.PAUSING,
    }


def instant(stamp: timestamp_pb2.Timestamp) -> datetime | None:
    """The instant as aware UTC, to the microsecond; None if containerd sent none (Go's zero time included)."""
    if stamp.seconds <= 0:
        return None
    return stamp.ToDatetime(tzinfo=UTC)


def json_any(type_url: str, value: object) -> any_pb2.Any:
    """A JSON document in an Any, the way containerd carries OCI objects.

    Raises: Invalid if JSON cannot represent the value.
    """
    try:
        return any_pb2.Any(type_url=type_url, value=msgspec.json.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise errors.Invalid(f"cannot write the OCI document as JSON: {error}") from error


def runtime_options(options: types.RuntimeOptions) -> any_pb2.Any:
    """The options of the runc shim, for the container record and for the task alike. Raises: Invalid."""
    try:
        message = moorage_runc_pb2.Options(
            no_pivot_root=options.no_pivot_root,
            no_new_keyring=options.no_new_keyring,
            shim_cgroup=options.shim_cgroup,
            io_uid=options.io_uid,
            io_gid=options.io_gid,
            binary_name=options.binary_name,
            root=options.root,
            systemd_cgroup=options.systemd_cgroup,
        )
    except ValueError as error:
        owner = f"uid {options.io_uid}, gid {options.io_gid}"
        raise errors.Invalid(f"cannot write the runtime's options, with {owner} for its pipes: {error}") from error
    # containerd registers this type under its bare name, without the host that Any.Pack would put before it
    return any_pb2.Any(type_url=RUNC_OPTIONS_TYPE, value=message.SerializeToString())


def checkpoint_options(options: types.CheckpointOptions) -> any_pb2.Any:
    """The options of the runc shim for a checkpoint."""
    message = moorage_runc_pb2.CheckpointOptions(
        exit=options.exit,
        open_tcp=options.open_tcp,
        external_unix_sockets=options.external_unix_sockets,
        terminal=options.terminal,
        file_locks=options.file_locks,
    )
    return any_pb2.Any(type_url="containerd.runc.v1.CheckpointOptions", value=message.SerializeToString())


def runtime_options_value(name: str, message: any_pb2.Any) -> types.RuntimeOptions:
    """The options of a record; the default for those of another shim."""
    try:
        found = moorage_runc_pb2.Options.FromString(message.value if message.type_url == RUNC_OPTIONS_TYPE else b"")
    except DecodeError:
        return types.RuntimeOptions()
    return types.RuntimeOptions(
        name=name or types.RuntimeOptions().name,
        root=found.root,
        binary_name=found.binary_name,
        systemd_cgroup=found.systemd_cgroup,
        no_pivot_root=found.no_pivot_root,
        no_new_keyring=found.no_new_keyring,
        shim_cgroup=found.shim_cgroup,
        io_uid=found.io_uid,
        io_gid=found.io_gid,
    )


def mount(value: types.Mount) -> moorage_types_pb2.Mount:
    """One mount as the shim takes it."""
    return moorage_types_pb2.Mount(
        type=value.type, source=value.source, target=value.target, options=list(value.options)
    )


def mount_value(message: moorage_types_pb2.Mount) -> types.Mount:
    """One mount as a snapshot requires it."""
    return types.Mount(message.type, message.source, tuple(message.options), message.target)


def descriptor_message(value: types.Descriptor) -> moorage_types_pb2.Descriptor:
    """A pointer to content, outwards."""
    return moorage_types_pb2.Descriptor(
        media_type=value.media_type, digest=value.digest, size=value.size_bytes, annotations=value.annotations
    )


def descriptor(message: moorage_types_pb2.Descriptor) -> types.Descriptor:
    """A pointer to content, inwards."""
    return types.Descriptor(message.media_type, message.digest, message.size, dict(message.annotations))


def content(message: moorage_content_pb2.Info) -> types.Content:
    """A blob."""
    return types.Content(message.digest, message.size, dict(message.labels))


def ingest(message: moorage_content_pb2.Status) -> types.Ingest:
    """A blob that is being written."""
    return types.Ingest(message.ref, message.offset, message.total, message.expected)


def image_message(value: types.Image) -> moorage_images_pb2.Image:
    """An image record, outwards."""
    return moorage_images_pb2.Image(name=value.name, labels=value.labels, target=descriptor_message(value.target))


def image(message: moorage_images_pb2.Image) -> types.Image:
    """An image record, inwards."""
    return types.Image(message.name, descriptor(message.target), dict(message.labels))


def snapshot(message: moorage_snapshots_pb2.Info) -> types.Snapshot:
    """A snapshot."""
    kinds = {
        moorage_snapshots_pb2.VIEW: types.SnapshotKind.VIEW,
        moorage_snapshots_pb2.ACTIVE: types.SnapshotKind.ACTIVE,
        moorage_snapshots_pb2.COMMITTED: types.SnapshotKind.COMMITTED,
    }
    kind = kinds.get(message.kind, types.SnapshotKind.UNKNOWN)
    return types.Snapshot(message.name, message.parent, kind, dict(message.labels))


def container(message: moorage_containers_pb2.Container) -> types.Container:
    """A record; a spec that is not a JSON object becomes an empty one, since only its author can repair it."""
    spec: Any = {}
    try:
        spec = msgspec.json.decode(message.spec.value) if message.spec.value else {}
    except msgspec.DecodeError:
        pass
    return types.Container(
        id=message.id,
        spec=spec if isinstance(spec, dict) else {},
        labels=dict(message.labels),
        runtime_name=message.runtime.name,
        runtime=runtime_options_value(message.runtime.name, message.runtime.options),
        image=message.image,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        created_at=instant(message.created_at),
        updated_at=instant(message.updated_at),
        extensions={name: (each.type_url, each.value) for name, each in message.extensions.items()},
    )


def process(message: moorage_process_pb2.Process) -> types.Process:
    """A process. An empty id stands for the container's first process and is filled in."""
    return types.Process(
        container_id=message.container_id or message.id,
        id=message.id,
        pid=message.pid,
        status=_statuses().get(message.status, types.Status.UNKNOWN),
        stdin=message.stdin,
        stdout=message.stdout,
        stderr=message.stderr,
        exit_code=message.exit_status,
        exited_at=instant(message.exited_at),
    )
