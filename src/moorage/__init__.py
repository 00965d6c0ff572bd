"""Run Docker-format managed plugins on containerd, without a Docker daemon.

    from moorage import Exit, ExitHandler, Executor, open_executor

Names, imported when they are first used:

    Executor: Containers of one containerd namespace; create, signal, and one exit per run.
    Exit: The exit of one run of a container.
    ExitHandler: Protocol of what receives each exit, exactly once.
    PLUGIN_NAMESPACE: The containerd namespace of Docker's plugins.
    open_executor: An executor for the containerd that listens on a unix socket.

Packages: ``moorage.containerd`` (a client of containerd), ``moorage.executor`` (containers on any such client),
``moorage.plugins`` (configs, privileges and OCI specs of plugins), ``moorage.errors`` (the kinds of failures).
"""

from moorage._version import __version__ as __version__

TYPE_CHECKING = False  # not from typing, which every command would wait for
if TYPE_CHECKING:
    from moorage.embedding import open_executor as open_executor
    from moorage.executor import PLUGIN_NAMESPACE as PLUGIN_NAMESPACE
    from moorage.executor import Executor as Executor
    from moorage.executor import Exit as Exit
    from moorage.executor import ExitHandler as ExitHandler

__all__ = ("PLUGIN_NAMESPACE", "Executor", "Exit", "ExitHandler", "__version__", "open_executor")


def __getattr__(name: str) -> object:
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        importlib.import_module("moorage.embedding" if name == "open_executor" else "moorage.executor"), name
    )


def __dir__() -> list[str]:
    return sorted(__all__)
