"""The owner of the pipes of a process, so that it can reopen its /dev/stdout. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from moorage.containerd.types import Spec

__all__ = ("io_owner",)


def io_owner(spec: Spec) -> tuple[int, int]:
    """The uid and gid on the host of the spec's user, mapped through its user namespace; (0, 0) if the spec names none.

    An id outside every mapping is returned unchanged, for the runtime to refuse.
    Source: OCI runtime spec, ``process.user`` and ``linux.uidMappings``; row E07.
    """
    user = _mapping(_mapping(spec.get("process")).get("user"))
    linux = _mapping(spec.get("linux"))
    return (
        _on_host(user.get("uid", 0), linux.get("uidMappings")),
        _on_host(user.get("gid", 0), linux.get("gidMappings")),
    )


def _on_host(inside: object, ranges: Any) -> int:
    if not isinstance(inside, int):
        return 0
    for each in ranges if isinstance(ranges, Sequence) else ():
        container, host, size = (_mapping(each).get(name, 0) for name in ("containerID", "hostID", "size"))
        # Anything but a number is for the runtime to refuse.
        if all(isinstance(it, int) for it in (container, host, size)) and 0 <= inside - container < size:
            return int(host) + inside - int(container)
    return inside


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
