"""The client of the engine's API, synchronous and typed: what the command line uses.

Names, imported when they are first used:

    DEFAULT_HOST: The host of the engine where nothing else is said.
    ExecOutput: Bytes that a command in a plugin wrote.
    Execution: A command that runs in a plugin.
    MoorageClient: Every call of one engine.
    Progress: An operation that continues while its lines are read.
    socket_of: The path of the socket of a host.
"""

TYPE_CHECKING = False  # not from typing, which every command would wait for
if TYPE_CHECKING:
    from moorage.client.client import MoorageClient as MoorageClient
    from moorage.client.execution import ExecOutput as ExecOutput
    from moorage.client.execution import Execution as Execution
    from moorage.client.host import DEFAULT_HOST as DEFAULT_HOST
    from moorage.client.host import socket_of as socket_of
    from moorage.client.packages import Progress as Progress

__all__ = ("DEFAULT_HOST", "ExecOutput", "Execution", "MoorageClient", "Progress", "socket_of")

_MODULES = {
    "DEFAULT_HOST": "host",
    "ExecOutput": "execution",
    "Execution": "execution",
    "MoorageClient": "client",
    "Progress": "packages",
    "socket_of": "host",
}


def __getattr__(name: str) -> object:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
