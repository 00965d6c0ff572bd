"""An executor for another program: client, containers and executor put together."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from msgspec.structs import replace

from moorage import errors
from moorage._lib.task_groups import require_asyncio
from moorage._lib.threads import run_blocking
from moorage.containerd import connect
from moorage.containerd.containers import BundledContainers
from moorage.containerd.types import RuntimeOptions
from moorage.executor import PLUGIN_NAMESPACE, Executor, ExitHandler
from moorage.executor import open_executor as over_client
from moorage.executor.ownership import own_namespace
from moorage.host.files import make_directory
from moorage.timeouts import DEFAULT, EmbeddedTimeouts

__all__ = ("open_executor", "runtime_below")


@asynccontextmanager
async def open_executor(
    address: str,
    root: Path | str,
    exit_handler: ExitHandler,
    *,
    namespace: str = PLUGIN_NAMESPACE,
    runtime: RuntimeOptions | None = None,
    timeouts: EmbeddedTimeouts = DEFAULT,
) -> AsyncIterator[Executor]:
    """An executor over the containerd at this unix socket, until the block ends; tasks outlive it.

    ``root`` is an absolute directory for bundles and FIFOs, and for the runtime's own state
    (``<root>/runtime-root``, unless ``runtime`` gives one). Two processes never share it: while one with an executor in
    the namespace runs, another is refused (Conflict).

    Raises:
        errors.Conflict: another process has an executor in the namespace, or an engine has it, running or not
        errors.Unsupported: the event loop is not one of asyncio (trio)
        errors.MoorageError: the kind of the cause, as "cannot create containerd exec client: ..."
    """
    require_asyncio("create containerd exec client")
    directory = Path(root)
    if not directory.is_absolute():
        raise errors.Invalid(f"cannot create containerd exec client: {directory} is not an absolute path")
    chosen = runtime_below(directory, runtime)
    try:
        await run_blocking(lambda: make_directory(directory, 0o711))
    except OSError as error:
        raise errors.Invalid(f"cannot create containerd exec client: {error}") from error
    async with connect(address, namespace, timeouts) as client:
        containers = BundledContainers(client, directory, runtime=chosen, timeouts=timeouts)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(own_namespace(client.storage, namespace, timeouts))
            except errors.MoorageError as error:
                raise type(error)(f"cannot create containerd exec client: {error}") from error
            yield await stack.enter_async_context(
                over_client(containers, exit_handler, runtime=chosen, timeouts=timeouts)
            )


def runtime_below(root: Path, runtime: RuntimeOptions | None = None) -> RuntimeOptions:
    """The runtime options of an executor with this root directory: the state of the runtime is below it too."""
    chosen = runtime or RuntimeOptions()
    return chosen if chosen.root else replace(chosen, root=str(root / "runtime-root"))
