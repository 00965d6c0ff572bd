"""Devices and mount options of this host as ``plugins.spec`` needs them. Opens nothing. Everything here blocks."""

from collections.abc import Iterable

from msgspec.structs import astuple

from moorage import errors
from moorage.host.devices import find_devices
from moorage.host.mounts import mount_options
from moorage.plugins.spec import DeviceNode

__all__ = ("locked_flags", "resolve_device", "resolve_devices")


def locked_flags(sources: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The mount options that each source has now, which a bind of it must keep inside a user namespace.

    The kernel refuses a remount there that would lose one (mount_namespaces(7)).

    Raises: Unavailable if a source cannot be examined.
    """
    found = {}
    for source in dict.fromkeys(sources):
        try:
            found[source] = mount_options(source)
        except OSError as error:
            raise errors.Unavailable(f"cannot examine mount source {source}: {error.strerror}") from error
    return found


def resolve_devices(paths: Iterable[str]) -> dict[str, tuple[DeviceNode, ...]]:
    """The device nodes at each path; a path without any is left out, and ``build_spec`` reports it.

    Raises: Unavailable if a path cannot be examined.
    """
    found = {path: resolve_device(path) for path in dict.fromkeys(paths)}
    return {path: nodes for path, nodes in found.items() if nodes}


def resolve_device(path: str) -> tuple[DeviceNode, ...]:
    """The device at ``path``, or every device below it if it is a directory, by name.

    Raises: Unavailable if the path cannot be examined.
    """
    try:
        found = find_devices(path)
    except OSError as error:
        raise errors.Unavailable(f"cannot examine device {path}: {error.strerror}") from error
    return tuple(DeviceNode(*astuple(each)) for each in found)
