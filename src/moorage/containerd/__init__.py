"""An asynchronous client of containerd, typed and useful by itself. Nothing here knows what a plugin is.

async with containerd.connect("/run/containerd/containerd.sock", "default") as client:
    print(await client.version())
"""

from moorage.containerd.client import Client as Client
from moorage.containerd.client import check_identifier as check_identifier
from moorage.containerd.client import connect as connect
from moorage.containerd.events import subscribe as subscribe

__all__ = ("Client", "check_identifier", "connect", "subscribe")
