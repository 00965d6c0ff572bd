"""The engine as a program: data directory, API, containerd, plugins, in this order; ended in reverse.

The API answers before containerd is running and before any plugin is started: a plugin may call it while it starts.
"""

import logging

import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.notify import ServiceManager
from moorage._lib.stop_signals import stop_signals
from moorage._lib.task_groups import background_tasks
from moorage.api.metrics import serve_metrics
from moorage.api.server import serve_api
from moorage.assembly import EngineSetup, ServeOptions, lock_data_directory, open_engine, open_plugins
from moorage.containerd.database import DamagedDatabase
from moorage.engine.engine import Engine
from moorage.engine.store import Store
from moorage.host.process_environment import set_process_defaults
from moorage.service_manager import describe_stop, notify_service_manager
from moorage.shutdown import stop_all_plugins, stop_engine
from moorage.ui.process import page_process

__all__ = ("ServeOptions", "run_engine", "stop_engine")

log = logging.getLogger(__name__)


async def run_engine(options: ServeOptions) -> int:
    """Serve until a signal says so. Plugins continue to run then, or without live restore are stopped.

    The exit status for the shell. Further signals are counted and logged; the third within ten seconds makes the
    shutdown kill plugins that take their time, and nothing else.

    Raises: by kind: Denied without root, Conflict for a directory or a namespace that another
    engine works on, Invalid for a directory that cannot be used, Unsupported for the data of a newer version.
    """
    set_process_defaults()
    async with (
        stop_signals(describe_stop(live_restore=options.live_restore)) as stop,
        lock_data_directory(
            options, serves=True
        ) as store,  # to the last: what this process stops, no other one stops as well
    ):
        await _serve(store, options, stop.scope)
        if not options.live_restore:
            await stop_all_plugins(store, options, kill_now=stop.urgent)
    return 0


async def _serve(store: Store, options: ServeOptions, stop: anyio.CancelScope) -> None:
    failure: errors.MoorageError | None = None
    manager = ServiceManager()
    socket = options.api_socket
    async with open_engine(store, options) as (engine, ground):
        with stop:

            async def keep_working() -> None:
                nonlocal failure
                try:
                    await _keep_working(engine, ground)
                except errors.Conflict as error:
                    failure = error
                    stop.cancel()

            async with (
                background_tasks() as tasks,
                serve_api(engine, socket, options.group),
                serve_metrics(engine, options.metrics_address),
                notify_service_manager(manager, engine, options.timeouts),
                page_process(options.ui, socket, options.root, options.timeouts),
            ):
                log.info("the API listens on %s", socket)
                tasks.start_soon(keep_working)
                await anyio.sleep_forever()
    if failure is not None:
        raise failure


async def _keep_working(engine: Engine, ground: EngineSetup) -> None:
    """Find containerd, waited for without bound, and run plugins on it. Raises: Conflict for a foreign namespace."""
    timeouts = ground.options.timeouts
    reported = ""
    for pause in pauses(timeouts.reconnect_first, timeouts.reconnect_limit):
        try:
            async with open_plugins(engine, ground, start=True):
                await anyio.sleep_forever()
        except errors.Conflict:
            raise
        except errors.MoorageError as error:
            level = logging.WARNING if str(error) != reported else logging.DEBUG  # once for each change
            log.log(level, "cannot run plugins yet: %s", error)
            reported = str(error)
            engine.set_problem(str(error), is_lasting=isinstance(error, DamagedDatabase))
        await anyio.sleep(pause)
