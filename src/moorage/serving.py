"""The engine as a program: data directory, API, containerd, plugins, in this order; ended in reverse.

The API answers before containerd is there and before any plugin is started: a plugin may call it while it starts.
"""

import logging

import anyio

from moorage import errors
from moorage._lib.backoff import pauses
from moorage._lib.groups import background_tasks
from moorage._lib.notify import ServiceManager
from moorage._lib.stop_signals import stop_signals
from moorage.api.metrics import serve_metrics
from moorage.api.server import serve_api
from moorage.assembly import Ground, ServeOptions, open_engine, open_plugins
from moorage.containerd.database import DamagedDatabase
from moorage.engine.engine import Engine
from moorage.host.inheritance import settle_process
from moorage.service import kept_informed, last_words
from moorage.shutdown import end_everything, take_down

__all__ = ("ServeOptions", "run_engine", "take_down")

log = logging.getLogger(__name__)


async def run_engine(options: ServeOptions) -> int:
    """Serve until a signal says so. Plugins go on running then; without live restore all ends, as in ``take_down``.

    The exit status for the shell. Further signals are counted and logged; the third within ten seconds makes the
    shutdown kill plugins that take their time, and nothing else.

    Raises: by kind, in words for the user: Denied without root, Conflict for a directory or a namespace that another
    engine works on, Invalid for a directory that cannot be used, Unsupported for the data of a newer version.
    """
    settle_process()
    async with stop_signals(last_words(live_restore=options.live_restore)) as stop:
        await _serve(options, stop.scope)
        if not options.live_restore:
            await end_everything(options, hurry=stop.hurry)
    return 0


async def _serve(options: ServeOptions, stop: anyio.CancelScope) -> None:
    failure: errors.MoorageError | None = None
    manager = ServiceManager()
    socket = options.api_socket
    async with open_engine(options) as (engine, ground):
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
                kept_informed(manager, engine, options.timeouts),
            ):
                log.info("the API listens on %s", socket)
                tasks.start_soon(keep_working)
                await anyio.sleep_forever()
    if failure is not None:
        raise failure


async def _keep_working(engine: Engine, ground: Ground) -> None:
    """Find containerd, waited for without bound, and run plugins on it. Raises: Conflict for one that is not ours."""
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
            engine.without_machinery(str(error), is_lasting=isinstance(error, DamagedDatabase))
        await anyio.sleep(pause)
