"""Run Docker-format managed plugins on containerd, without a Docker daemon.

    from moorage import Exit, ExitHandler, Executor, open_executor

The names are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from moorage._version import __version__ as __version__

if TYPE_CHECKING:
    from moorage.embedding import open_executor as open_executor
    from moorage.executor import PLUGIN_NAMESPACE as PLUGIN_NAMESPACE
    from moorage.executor import Executor as Executor
    from moorage.executor import Exit as Exit
    from moorage.executor import ExitHandler as ExitHandler

__all__ = ("PLUGIN_NAMESPACE", "Executor", "Exit", "ExitHandler", "__version__", "open_executor")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(
        importlib.import_module("moorage.embedding" if name == "open_executor" else "moorage.executor"), name
    )
