"""What an engine does on a containerd first: it claims the namespace, removes its own leftovers, restores plugins."""

import logging
from collections.abc import Sequence
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.creation import Creation
from moorage.engine.machinery import Machinery
from moorage.engine.ownership import claim_namespace, find_foreign
from moorage.engine.places import SHORT_ID, sweep
from moorage.engine.plugin import Plugin
from moorage.engine.restoring import Restoring
from moorage.engine.work import Work, logged
from moorage.host.process_identity import boot_id

__all__ = ("Startup",)

log = logging.getLogger(__name__)


class Startup:
    """The first steps on a containerd, which may be repeated on the next one."""

    def __init__(self, work: Work, creation: Creation, restoring: Restoring, runtime: Path) -> None:
        self.foreign: Sequence[str] = ()
        """What was in the namespace and is not this engine's, as text."""
        self._work = work
        self._creation = creation
        self._restoring = restoring
        self._runtime = runtime

    async def claim(self, machinery: Machinery) -> dict[str, str]:
        """Make sure that the namespace is this engine's, and remove its leftovers; its containers, by plugin.

        Raises: Conflict for a namespace that is another engine's, or a dockerd's.
        """
        store = self._work.store
        await claim_namespace(machinery.client, machinery.ownership, store, await run_blocking(boot_id))
        await run_blocking(store.claim)
        self.foreign = await find_foreign(machinery.client, machinery.ownership)
        for each in self.foreign:
            log.warning("leaving %s in namespace %s alone: it is not this engine's", each, machinery.client.namespace)
        owners = await machinery.owners()
        # before anybody can create anything: what is being made looks just like what was cut off
        await self._sweep(machinery, owners)
        return owners

    async def restore(self, owners: dict[str, str], *, start: bool) -> None:
        """Take over every plugin that runs, and with ``start`` start those that are enabled; return when all are."""
        async with anyio.create_task_group() as tasks:
            for plugin in self._work.registry.all():
                tasks.start_soon(self._restore, plugin, owners, start)

    async def _restore(self, plugin: Plugin, owners: dict[str, str], start: bool) -> None:
        job = logged(plugin, lambda: self._restoring.restore(plugin, owners, start=start))
        await self._work.inboxes.run(plugin.id, job)

    async def _sweep(self, machinery: Machinery, owners: dict[str, str]) -> None:
        """Remove what belongs to no plugin: of creates and removals that were cut off. Failures are logged."""
        known = frozenset(plugin.id for plugin in self._work.registry.all())
        try:
            for container, plugin in owners.items():
                if plugin not in known and not machinery.ownership.is_recorded(plugin):
                    await machinery.destroy(container)
            await self._creation.sweep(machinery)
            await run_blocking(lambda: sweep(self._runtime, frozenset(id[:SHORT_ID] for id in known)))
            await run_blocking(lambda: self._work.store.sweep(known))
        except (errors.MoorageError, OSError) as error:
            log.warning("cannot remove all that was left: %s", error)
