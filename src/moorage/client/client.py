"""The client of the API as a whole: every call of every resource."""

from moorage.client.consumers import ConsumerClient
from moorage.client.execution import ExecutionClient
from moorage.client.packages import PackageClient
from moorage.client.plugins import PluginClient
from moorage.client.system import SystemClient

__all__ = ("MoorageClient",)


class MoorageClient(SystemClient, PluginClient, PackageClient, ConsumerClient, ExecutionClient):
    """A synchronous client of one engine. Each call has a connection of its own; answers are typed.

    Every call raises the kind of failure that the engine reports, Unavailable where no engine answers or the answer is
    not one of Moorage, and Denied where the user may not use the socket.

    Args:
        host: ``unix://PATH``, or an absolute path
        within: seconds that one step of an answer may take; None where only the engine bounds it
    """
