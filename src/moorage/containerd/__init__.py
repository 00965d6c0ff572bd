"""An asynchronous client of containerd, typed and useful by itself. Nothing here knows what a plugin is.

async with containerd.connect("/run/containerd/containerd.sock", "default") as client:
    print(await client.version())
"""

from typing import TYPE_CHECKING

from moorage._lib.lazy import names_from

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

__getattr__ = names_from(
    __name__,
    {
        "Client": "moorage.containerd.client",
        "FifoReader": "moorage.containerd.stdio",
        "Heard": "moorage.containerd._rpc",
        "PrivateContainerd": "moorage.containerd.supervisor",
        "Stdio": "moorage.containerd.stdio",
        "check_identifier": "moorage.containerd.client",
        "connect": "moorage.containerd.client",
        "make_fifos": "moorage.containerd.stdio",
        "open_stdio": "moorage.containerd.stdio",
        "subscribe": "moorage.containerd.events",
        "supervise": "moorage.containerd.supervisor",
    },
)
