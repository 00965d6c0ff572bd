"""An asynchronous client of containerd, typed and useful by itself. Nothing here knows what a plugin is.

async with containerd.connect("/run/containerd/containerd.sock", "default") as client:
    print(await client.version())
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage.containerd._rpc import Heard as Heard
    from moorage.containerd.client import Client as Client
    from moorage.containerd.client import check_identifier as check_identifier
    from moorage.containerd.client import connect as connect
    from moorage.containerd.events import subscribe as subscribe
    from moorage.containerd.stdio import FifoReader as FifoReader
    from moorage.containerd.stdio import Stdio as Stdio
    from moorage.containerd.stdio import make_fifos as make_fifos
    from moorage.containerd.stdio import open_stdio as open_stdio
    from moorage.containerd.supervisor import PrivateContainerd as PrivateContainerd
    from moorage.containerd.supervisor import supervise as supervise

__all__ = (
    "Client",
    "FifoReader",
    "Heard",
    "PrivateContainerd",
    "Stdio",
    "check_identifier",
    "connect",
    "make_fifos",
    "open_stdio",
    "subscribe",
    "supervise",
)

_MODULES = {
    "Client": "client",
    "FifoReader": "stdio",
    "Heard": "_rpc",
    "PrivateContainerd": "supervisor",
    "Stdio": "stdio",
    "check_identifier": "client",
    "connect": "client",
    "make_fifos": "stdio",
    "open_stdio": "stdio",
    "subscribe": "events",
    "supervise": "supervisor",
}
"""Where each name is; imported when it is first used, because an engine answers before it has gRPC."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
