"""containerd itself: version, introspection, namespaces."""

from __future__ import annotations  # messages are named in them, and are made when they are first used

from collections.abc import Mapping

from moorage.containerd import types
from moorage.containerd._proto import (
    empty_pb2,
    field_mask_pb2,
    moorage_introspection_pb2,
    moorage_namespaces_pb2,
    moorage_version_pb2,
)
from moorage.containerd.calls.base import ServiceCalls
from moorage.containerd.identifiers import check_identifier

__all__ = ("SystemCalls",)

_INTROSPECTION = "/containerd.services.introspection.v1.Introspection/"
_NAMESPACES = "/containerd.services.namespaces.v1.Namespaces/"
_VERSION = "/containerd.services.version.v1.Version/"


class SystemCalls(ServiceCalls):
    """Version, plugins and namespaces of a containerd."""

    last_version = ""
    """What the last call of ``version`` returned; empty before the first."""

    async def version(self) -> types.Version:
        """Version and revision of containerd; also the cheapest check that it answers."""
        reply = await self._call(_VERSION + "Version", empty_pb2.Empty(), moorage_version_pb2.VersionResponse)
        self.last_version = reply.version
        return types.Version(reply.version, reply.revision)

    async def plugins(self, *filters: str) -> list[types.ContainerdPlugin]:
        """The plugins of containerd that match any of the filters, all without one."""
        request = moorage_introspection_pb2.PluginsRequest(filters=filters)
        reply = await self._call(_INTROSPECTION + "Plugins", request, moorage_introspection_pb2.PluginsResponse)
        return [
            types.ContainerdPlugin(plugin.type, plugin.id, dict(plugin.exports), plugin.init_err.message)
            for plugin in reply.plugins
        ]

    async def server(self) -> types.ServerIdentity:
        """The identity of this containerd."""
        reply = await self._call(_INTROSPECTION + "Server", empty_pb2.Empty(), moorage_introspection_pb2.ServerResponse)
        return types.ServerIdentity(reply.uuid, reply.pid)

    async def namespaces(self) -> dict[str, dict[str, str]]:
        """Every namespace of this containerd with its labels."""
        request = moorage_namespaces_pb2.ListNamespacesRequest()
        reply = await self._call(_NAMESPACES + "List", request, moorage_namespaces_pb2.ListNamespacesResponse)
        return {namespace.name: dict(namespace.labels) for namespace in reply.namespaces}

    async def create_namespace(self, name: str, labels: Mapping[str, str] | None = None) -> None:
        """Make a namespace. Objects create their namespace on first use; this is for the labels."""
        namespace = moorage_namespaces_pb2.Namespace(name=check_identifier(name, "namespace"), labels=labels or {})
        request = moorage_namespaces_pb2.CreateNamespaceRequest(namespace=namespace)
        await self._call(_NAMESPACES + "Create", request, moorage_namespaces_pb2.CreateNamespaceResponse)

    async def set_namespace_labels(self, name: str, labels: Mapping[str, str]) -> None:
        """Set these labels, retain others; an empty one is removed. A namespace that does not exist is made."""
        request = moorage_namespaces_pb2.UpdateNamespaceRequest(
            namespace=moorage_namespaces_pb2.Namespace(name=name, labels=labels),
            update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in labels]),
        )
        await self._call(_NAMESPACES + "Update", request, moorage_namespaces_pb2.UpdateNamespaceResponse)

    async def delete_namespace(self, name: str) -> None:
        """Remove an empty namespace.

        Raises:
            errors.NotFound: no such namespace
            errors.Conflict: it contains something
        """
        await self._call(
            _NAMESPACES + "Delete", moorage_namespaces_pb2.DeleteNamespaceRequest(name=name), empty_pb2.Empty
        )
