"""One container per id on containerd: create, restore, signal, and every exit delivered exactly once."""

from moorage.executor._lifetime import open_executor as open_executor
from moorage.executor.executor import Executor as Executor
from moorage.executor.protocols import INIT_PROCESS_NAME as INIT_PROCESS_NAME
from moorage.executor.protocols import PLUGIN_NAMESPACE as PLUGIN_NAMESPACE
from moorage.executor.protocols import RUN_LABEL as RUN_LABEL
from moorage.executor.protocols import Attach as Attach
from moorage.executor.protocols import Attached as Attached
from moorage.executor.protocols import ByteSink as ByteSink
from moorage.executor.protocols import ContainerClient as ContainerClient
from moorage.executor.protocols import Exit as Exit
from moorage.executor.protocols import ExitHandler as ExitHandler
from moorage.executor.protocols import Stdio as Stdio

__all__ = (
    "INIT_PROCESS_NAME",
    "PLUGIN_NAMESPACE",
    "RUN_LABEL",
    "Attach",
    "Attached",
    "ByteSink",
    "ContainerClient",
    "Executor",
    "Exit",
    "ExitHandler",
    "Stdio",
    "open_executor",
)
