"""The records of containers."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import Mapping

from moorage import errors
from moorage.containerd import types
from moorage.containerd._proto import any_pb2, empty_pb2, field_mask_pb2, moorage_containers_pb2
from moorage.containerd.calls import wire
from moorage.containerd.calls.base import ServiceCalls
from moorage.containerd.identifiers import check_identifier

__all__ = ("ContainerCalls",)

_CONTAINERS = "/containerd.services.containers.v1.Containers/"


class ContainerCalls(ServiceCalls):
    """Records of containers: what would run."""

    async def create_container(
        self,
        id: str,
        spec: types.Spec,
        runtime: types.RuntimeOptions,
        *,
        labels: Mapping[str, str] | None = None,
        image: str = "",
        snapshotter: str = "",
        snapshot_key: str = "",
        extensions: Mapping[str, tuple[str, bytes]] | None = None,
    ) -> None:
        """Write a record.

        Raises:
            errors.Conflict: the id has a record
            errors.Invalid: the id or the spec cannot be written
        """
        record = moorage_containers_pb2.Container(
            id=check_identifier(id, "container id"),
            labels=labels or {},
            runtime=moorage_containers_pb2.Container.Runtime(name=runtime.name, options=wire.runtime_options(runtime)),
            spec=wire.json_any(wire.SPEC_TYPE, spec),
            image=image,
            snapshotter=snapshotter,
            snapshot_key=snapshot_key,
            extensions=_messages(extensions or {}),
        )
        request = moorage_containers_pb2.CreateContainerRequest(container=record)
        await self._call(_CONTAINERS + "Create", request, moorage_containers_pb2.CreateContainerResponse)

    async def get_container(self, id: str) -> types.Container:
        """The record of this id.

        Raises:
            errors.NotFound: no such record
        """
        request = moorage_containers_pb2.GetContainerRequest(id=id)
        reply = await self._call(_CONTAINERS + "Get", request, moorage_containers_pb2.GetContainerResponse)
        return wire.container(reply.container)

    async def list_containers(self, *filters: str) -> list[types.Container]:
        """The records that match any of the filters, all without one."""
        request = moorage_containers_pb2.ListContainersRequest(filters=filters)
        reply = await self._call(_CONTAINERS + "List", request, moorage_containers_pb2.ListContainersResponse)
        return [wire.container(record) for record in reply.containers]

    async def update_container(
        self,
        id: str,
        *,
        labels: Mapping[str, str] | None = None,
        spec: types.Spec | None = None,
        image: str | None = None,
        extensions: Mapping[str, tuple[str, bytes]] | None = None,
    ) -> types.Container:
        """Change a record; only what is given changes: of labels and extensions those that are named.

        An empty label is removed; an extension cannot be. A new spec counts for the next task.

        Raises:
            errors.NotFound: no such record
            errors.Invalid: nothing is given, or containerd refuses it
        """
        record = moorage_containers_pb2.Container(id=id, labels=labels or {}, extensions=_messages(extensions or {}))
        paths = [*(f"labels.{key}" for key in labels or {}), *(f"extensions.{key}" for key in extensions or {})]
        if spec is not None:
            record.spec.CopyFrom(wire.json_any(wire.SPEC_TYPE, spec))
            paths.append("spec")
        if image is not None:
            record.image = image
            paths.append("image")
        if not paths:
            raise errors.Invalid(f"cannot update container {id}: nothing is given to change")
        request = moorage_containers_pb2.UpdateContainerRequest(
            container=record, update_mask=field_mask_pb2.FieldMask(paths=paths)
        )
        reply = await self._call(_CONTAINERS + "Update", request, moorage_containers_pb2.UpdateContainerResponse)
        return wire.container(reply.container)

    async def delete_container(self, id: str) -> None:
        """Remove the record. containerd does so even while its task runs, which makes the task unreachable.

        Raises:
            errors.NotFound: no such record
        """
        await self._call(_CONTAINERS + "Delete", moorage_containers_pb2.DeleteContainerRequest(id=id), empty_pb2.Empty)


def _messages(extensions: Mapping[str, tuple[str, bytes]]) -> dict[str, any_pb2.Any]:
    return {name: any_pb2.Any(type_url=url, value=value) for name, (url, value) in extensions.items()}
