"""One run of a plugin: brought up until its socket accepts, brought down until nothing of it is left."""

import logging
from collections.abc import Callable

import anyio

from moorage import errors
from moorage._lib.threads import run_abandonable, run_blocking
from moorage.containerd.types import Spec
from moorage.engine.consent import Consent
from moorage.engine.ending import end_process
from moorage.engine.entrypoint import explain
from moorage.engine.figures import find_start
from moorage.engine.machinery import Machinery
from moorage.engine.ownership import PLUGIN_LABEL
from moorage.engine.package_repair import lost_package
from moorage.engine.plugin import Plugin, Run
from moorage.engine.probe import explain_socket, wait_until_listening
from moorage.engine.remains import keeping_group
from moorage.executor import Exit
from moorage.host.sockets import PluginSocket
from moorage.plugins import widenings
from moorage.timeouts import Timeouts

__all__ = ("adopt", "await_ready", "bring_down", "bring_up", "how_it_ended", "remove_strays")

log = logging.getLogger(__name__)

_LAST_LINES = 10


async def bring_up(
    plugin: Plugin, machinery: Machinery, consent: Consent, within: float, tell: Callable[..., None]
) -> None:
    """Start the run that the record names, and return when its socket accepts.

    On failure the process may be there still: ``bring_down`` ends it. ``tell`` takes an event.

    Raises: why it did not come up, in words: Invalid for what this host lacks, Denied for what was not granted,
    MoorageError for the rest.
    """
    config, places = plugin.config, plugin.places
    consent.check_widenings(widenings(plugin.confinement), plugin.record.attended_widenings)
    settings = await run_blocking(lambda: consent.prepare_now(plugin.name, plugin.record, config, places))
    spec = await run_blocking(lambda: places.spec(config, settings, plugin.confinement, plugin.id_base))
    await run_blocking(lambda: consent.check_devices_now(plugin.record, settings, spec))
    socket = places.socket(config)
    try:
        mounts = await machinery.storage.snapshot_mounts(plugin.record.snapshotter, plugin.record.snapshot)
    except errors.NotFound as error:
        raise lost_package(plugin, error) from error
    prepared = await run_blocking(lambda: places.prepare(config, mounts, plugin.id_base))
    for point in prepared.dropped:
        log.warning("unmounted %s of plugin %s: its server is gone", point, plugin.name)
        tell("unmount", path=str(point))
    for point in prepared.hung:
        log.warning("%s of plugin %s does not answer; it stays mounted", point, plugin.name)
    run = Run(plugin.record.container)
    labels = {PLUGIN_LABEL: plugin.id, **machinery.ownership.marks}
    taker = machinery.keeper.taker(run.container, plugin.log)
    plugin.run = run
    try:
        async with machinery.creating:
            with keeping_group():
                await machinery.executor.create(run.container, spec, attach=taker, labels=labels)
    except BaseException as error:
        plugin.run = None
        if isinstance(error, errors.MoorageError) and not isinstance(error, errors.Unavailable):
            raise await _why_not_created(plugin, spec, error) from error
        raise
    await run_blocking(places.created)
    await run_blocking(places.release_pins)
    await await_ready(plugin, run, machinery, socket, within, spec)


async def await_ready(
    plugin: Plugin, run: Run, machinery: Machinery, socket: PluginSocket, within: float, spec: Spec | None = None
) -> None:
    """Return when the socket of a run accepts. Raises: MoorageError where it ends or takes too long, in words."""
    deadline = anyio.current_time() + within
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_find_process, run, machinery)
        is_ready = await wait_until_listening(socket, lambda: run.ended.is_set() or anyio.current_time() > deadline)
        if is_ready and run.pid is not None:
            tasks.cancel_scope.cancel()
    if run.ended.is_set():
        reason = await _explain(spec, plugin) if spec is not None else ""
        raise errors.MoorageError(
            f"it {how_it_ended(run.exit)} before it accepted a connection on {socket.path}"
            f"{f': {reason}' if reason else await _hint(socket)}{_last_output(plugin, run)}"
        )
    if not is_ready:
        await machinery.keeper.flush(run.container)
        raise errors.MoorageError(
            f"it did not accept a connection on {socket.path} within {within:g} s{await _hint(socket)}"
            f"{_last_output(plugin, run)}"
        )


async def adopt(plugin: Plugin, machinery: Machinery) -> Exit | None:
    """Take over the run that the record names; how it ended meanwhile, None where it lives (``plugin.run`` is set)."""
    run = Run(plugin.record.container)
    plugin.run = run
    try:
        taker = machinery.keeper.taker(run.container, plugin.log)
        if await machinery.executor.restore(run.container, attach=taker):
            await run_blocking(plugin.places.protect)
            return None
    except BaseException:
        plugin.run = None
        raise
    plugin.run = None
    exit = machinery.executor.last_exit(run.container) or Exit(run.container, "", None)
    plugin.counts.exited(exit)
    return exit


async def bring_down(
    plugin: Plugin,
    machinery: Machinery | None,
    timeouts: Timeouts,
    *,
    at_once: bool = False,
    keep_places: bool = False,
    hurry: anyio.Event | None = None,
) -> None:
    """End the present run, if there is one, and unmount and remove what was made for it.

    ``at_once`` kills it without asking first, ``hurry`` when it is set; ``keep_places`` leaves the root mounted, for
    the next run.

    Raises: Unavailable for a process that does not end, or for what cannot be removed; it may be called again.
    """
    run = plugin.run
    if run is not None and not run.ended.is_set():
        if machinery is None:
            raise errors.Unavailable(f"cannot stop plugin {plugin.name}: containerd is not there")
        executor = machinery.executor
        own = plugin.record.policy.stop_timeout
        patience = 0.0 if at_once else timeouts.stop if own is None else own
        if not await end_process(
            lambda number: executor.signal(run.container, number), run.ended, timeouts, within=patience, hurry=hurry
        ):
            raise errors.Unavailable(
                f"cannot stop plugin {plugin.name}: its process{_pid(run)} is still there "
                f"{timeouts.killed:g} s after SIGKILL; its files are left alone"
            )
    plugin.run = None
    if not keep_places and run is None and machinery is not None:
        await remove_strays(plugin, machinery)  # nothing runs when this returns, also where nothing was held
    if not keep_places:
        await run_blocking(plugin.places.clear)


async def remove_strays(plugin: Plugin, machinery: Machinery) -> None:
    """Remove every container that is this plugin's and is no run that is held. Source: row M16."""
    held = plugin.run.container if plugin.run is not None else ""
    for container, owner in (await machinery.owners(plugin.id)).items():
        if container != held and plugin.id in (owner, container.partition(".")[0]):
            await machinery.destroy(container)


def how_it_ended(exit: Exit | None) -> str:
    """The end of a process in words: "ended with exit status 3"."""
    if exit is None or exit.code is None:
        return "ended, and nobody can tell how"
    if exit.oom:
        return "was killed for want of memory (exit status 137)"
    if exit.signal:
        return f"was killed by {exit.signal} (exit status {exit.code})"
    return f"ended with exit status {exit.code}"


async def _find_process(run: Run, machinery: Machinery) -> None:
    pid = machinery.executor.pid(run.container)
    if pid is not None:
        run.started_at = await run_blocking(lambda: find_start(pid))
    run.pid = pid  # last: whoever sees it cancels this


async def _why_not_created(plugin: Plugin, spec: Spec, error: errors.MoorageError) -> errors.MoorageError:
    reason = await _explain(spec, plugin)
    return type(error)(f"{reason} ({error})" if reason else str(error))


async def _explain(spec: Spec, plugin: Plugin) -> str:
    root = str(plugin.places.root)
    return await run_abandonable(lambda: explain(spec, root, owner=plugin.id))


async def _hint(socket: PluginSocket) -> str:
    text = await run_abandonable(lambda: explain_socket(socket))
    return f"; {text}" if text else ""


def _last_output(plugin: Plugin, run: Run) -> str:
    lines = [line for line in plugin.log.last_lines(_LAST_LINES) if line.at >= run.begun_at]
    return "; its last output:\n" + "\n".join(line.text for line in lines) if lines else "; it wrote nothing"


def _pid(run: Run) -> str:
    return f" (pid {run.pid})" if run.pid else ""
