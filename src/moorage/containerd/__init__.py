"""An asynchronous client of containerd, typed and useful by itself. Nothing here knows what a plugin is.

    async with containerd.connect("/run/containerd/containerd.sock", "default") as client:
        print(await client.version())

Names, imported when they are first used:

    CallObserver: Called after each call with its name, duration and failure.
    Client: The calls of one containerd, in one namespace.
    FifoReader: The read end of a FIFO.
    ImageConfig: What the author of an image states about its containers.
    PrivateContainerd: One containerd process with its own root and state directories.
    ProgressStep: One step of a pull.
    PulledImage: An image in containerd, unpacked.
    Storage: Content, images, snapshots and leases of one namespace.
    TaskFifos: The standard streams of a task, as FIFOs.
    check_identifier: Validate the id of a container or a namespace.
    connect: A client of the containerd that listens on a unix socket.
    container_spec: An OCI runtime spec for a container of an image.
    make_fifos: Create the FIFOs of a task.
    open_stdio: Open the read ends of these FIFOs.
    subscribe: Events of the namespace whose topic matches an expression.
    supervise: Run a containerd of one's own, and restart it when it exits.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage.containerd.client import Client as Client
    from moorage.containerd.client import connect as connect
    from moorage.containerd.events import subscribe as subscribe
    from moorage.containerd.identifiers import check_identifier as check_identifier
    from moorage.containerd.images.config import ImageConfig as ImageConfig
    from moorage.containerd.images.config import container_spec as container_spec
    from moorage.containerd.images.progress import ProgressStep as ProgressStep
    from moorage.containerd.images.pull import PulledImage as PulledImage
    from moorage.containerd.stdio import FifoReader as FifoReader
    from moorage.containerd.stdio import TaskFifos as TaskFifos
    from moorage.containerd.stdio import make_fifos as make_fifos
    from moorage.containerd.stdio import open_stdio as open_stdio
    from moorage.containerd.storage import Storage as Storage
    from moorage.containerd.supervisor import PrivateContainerd as PrivateContainerd
    from moorage.containerd.supervisor import supervise as supervise
    from moorage.containerd.types import CallObserver as CallObserver

__all__ = (
    "CallObserver",
    "Client",
    "FifoReader",
    "ImageConfig",
    "PrivateContainerd",
    "ProgressStep",
    "PulledImage",
    "Storage",
    "TaskFifos",
    "check_identifier",
    "connect",
    "container_spec",
    "make_fifos",
    "open_stdio",
    "subscribe",
    "supervise",
)

_MODULES = {
    "CallObserver": "types",
    "Client": "client",
    "FifoReader": "stdio",
    "ImageConfig": "images.config",
    "PrivateContainerd": "supervisor",
    "ProgressStep": "images.progress",
    "PulledImage": "images.pull",
    "Storage": "storage",
    "TaskFifos": "stdio",
    "check_identifier": "identifiers",
    "connect": "client",
    "container_spec": "images.config",
    "make_fifos": "stdio",
    "open_stdio": "stdio",
    "subscribe": "events",
    "supervise": "supervisor",
}
"""The module of each name; imported at its first use, because an engine answers before it has gRPC."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
