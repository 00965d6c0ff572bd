"""Run Docker-format managed plugins on containerd, without a Docker daemon.

    from moorage import Exit, ExitHandler, Executor, open_executor

The names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from moorage._lib.lazy import names_from
from moorage._version import __version__ as __version__

if TYPE_CHECKING:
    from moorage.embedding import open_executor as open_executor
    from moorage.executor import PLUGIN_NAMESPACE as PLUGIN_NAMESPACE
    from moorage.executor import Executor as Executor
    from moorage.executor import Exit as Exit
    from moorage.executor import ExitHandler as ExitHandler

__all__ = ("PLUGIN_NAMESPACE", "Executor", "Exit", "ExitHandler", "__version__", "open_executor")

__getattr__ = names_from(
    __name__,
    {
        "PLUGIN_NAMESPACE": "moorage.executor",
        "Executor": "moorage.executor",
        "Exit": "moorage.executor",
        "ExitHandler": "moorage.executor",
        "open_executor": "moorage.embedding",
    },
)
