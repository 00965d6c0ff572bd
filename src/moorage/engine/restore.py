"""What an engine does on a containerd first: claim the namespace, remove its own leftovers, restore every plugin."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.engine.changes.trial import roll_back
from moorage.engine.grants import save_log_target
from moorage.engine.lifecycle import BACK_OFF_LIMIT, Restoration, State, restoration
from moorage.engine.runtime import ContainerRuntime, EngineContext, Owners
from moorage.engine.store import Store
from moorage.engine.supervisor import RETRY_SECONDS, Supervisor
from moorage.engine.versions import VersionBuilder
from moorage.executor.ownership import ENGINE_LEASE, ENGINE_ROOT, refuse_executors
from moorage.host.proc import boot_id
from moorage.packages.content import LEASE_PREFIX, UPLOAD_PREFIX
from moorage.runs.directories import SHORT_ID
from moorage.runs.removal import remove_orphans

if TYPE_CHECKING:
    from moorage.containerd import Client
    from moorage.containerd.types import Container

from moorage.engine.runtime import ENGINE_LABEL, PLUGIN_LABEL, Ownership

__all__ = ("Restore",)

log = logging.getLogger(__name__)

_BOOT_LABEL = "moorage.boot"
_DOCKERD_LABEL = "com.docker/engine.bundle.path"
"""Label of every container of a dockerd. Source: moby libcontainerd/remote/client_linux.go."""

_WAYS_OUT = "give another one with --namespace, or use --containerd private"
_ATTEMPTS = 5  # two engines that claim a namespace at the same moment: one of them finds the other's claim


class Restore:
    """The first steps on a containerd, which are repeated on the next one."""

    def __init__(self, context: EngineContext, versions: VersionBuilder, exec_root: Path, *, live: bool) -> None:
        """``exec_root`` is the run-time directory. Without ``live`` what runs is ended and started again."""
        self.foreign: Sequence[str] = ()
        """What was in the namespace and is not this engine's, as text."""
        self._context = context
        self._versions = versions
        self._exec_root = exec_root
        self._live = live

    async def claim(self, runtime: ContainerRuntime) -> Owners:
        """Make sure that the namespace is this engine's, and remove its leftovers; its containers, by plugin.

        Raises: Conflict for a namespace that is another engine's, or a dockerd's.
        """
        store = self._context.store
        await claim_namespace(runtime.client, runtime.ownership, store, await run_blocking(boot_id))
        await run_blocking(store.claim)
        self.foreign = await find_foreign(runtime.client, runtime.ownership)
        for each in self.foreign:
            log.warning("leaving %s in namespace %s alone: it is not this engine's", each, runtime.client.namespace)
        owners = await runtime.owners()
        # before anything can be created: what is being made looks just like what was cut off
        await self._sweep(runtime, owners)
        return owners

    async def _sweep(self, runtime: ContainerRuntime, owners: Owners) -> None:
        """Remove what belongs to no plugin: of creates and removals that were cut off. Failures are logged."""
        known = frozenset(plugin.id for plugin in self._context.plugins.all())
        try:
            for container, plugin in owners.items():
                if plugin not in known and not runtime.ownership.is_recorded(plugin):
                    await runtime.destroy(container)
            await self._versions.sweep(runtime)
            await run_blocking(lambda: remove_orphans(self._exec_root, frozenset(id[:SHORT_ID] for id in known)))
            await run_blocking(lambda: self._context.store.sweep(known))
        except (errors.MoorageError, OSError) as error:
            log.warning("cannot remove all that was left: %s", error)

    async def restore(self, owners: Owners, *, start: bool) -> None:
        """Take over every plugin that runs, and with ``start`` start those that are enabled; return when all are."""
        async with anyio.create_task_group() as tasks:
            for plugin in self._context.plugins.all():
                tasks.start_soon(self._restore, plugin, owners, start)

    async def _restore(self, plugin: Supervisor, owners: Owners, start: bool) -> None:
        job = plugin.inbox.logged(lambda: self.restore_plugin(plugin, owners, start=start))
        await plugin.inbox.run_job(job)

    # jobs of a plugin's inbox

    async def restore_plugin(
        self, plugin: Supervisor, owners: Owners | None, *, start: bool, retry: float = RETRY_SECONDS
    ) -> None:
        """Find out what became of a plugin while no engine ran, and continue from that.

        ``owners``: the containers that exist, if they are known. Without ``start`` nothing is started that does not
        run. Where containerd does not answer, or something cannot be cleared, it is tried again after ``retry`` s.
        """
        try:
            await _restore_log_target(plugin)
            await self._restore_once(plugin, owners, start=start)
            plugin.inbox.set_restored()
        except errors.Unavailable as error:
            if plugin.state is not State.DISABLED:
                plugin.inbox.set_restored()
                raise  # a stop or a removal, which is tried again by itself
            plugin.set_problem(str(error))
            log.warning("cannot find out what became of plugin %s, it is tried again: %s", plugin.name, error)
            self._context.tasks.start_soon(self._restore_later, plugin, start, retry)
        except BaseException:
            plugin.inbox.set_restored()
            raise

    async def _restore_later(self, plugin: Supervisor, start: bool, pause: float) -> None:
        await anyio.sleep(pause)
        longer = min(2 * pause, BACK_OFF_LIMIT)

        async def job() -> None:
            # else a request came first
            if plugin.state is State.DISABLED and plugin.run is None and not plugin.starts.is_stop_pending:
                plugin.set_problem("")
                await self.restore_plugin(plugin, None, start=start, retry=longer)

        plugin.inbox.queue(job)

    async def _restore_once(self, plugin: Supervisor, owners: Owners | None, *, start: bool) -> None:
        runtime = self._context.availability.require()
        record = plugin.record
        is_plain = record.enabled and not record.removing and record.previous is None
        if is_plain and owners is None:
            owners = await runtime.owners()
        match restoration(
            is_removing=record.removing,
            is_on_trial=record.previous is not None,
            is_enabled=record.enabled,
            has_container=record.container in (owners or ()),
            start=start,
        ):
            case Restoration.FINISH_REMOVAL:
                plugin.inbox.set_restored()
                await plugin.erase()
            case Restoration.ROLL_BACK:
                await self._roll_back(plugin, runtime, start=start)
            case Restoration.TAKE_OVER:
                await plugin.take_over(owners, start=start, live=self._live)
            case Restoration.START:
                await plugin.runner.remove_orphans(runtime, owners)  # the start looks once more
                plugin.inbox.set_restored()
                await plugin.start_if_due()
            case Restoration.CLEAN_UP:
                await plugin.runner.remove_orphans(runtime)
                await plugin.wait_mount_points()
                await plugin.runner.remove_files()

    async def _roll_back(self, plugin: Supervisor, runtime: ContainerRuntime, *, start: bool) -> None:
        """Let the version of before count again, and forget the one that was tried out."""
        tried = plugin.record.image
        await roll_back(self._context, plugin)
        try:
            if tried != plugin.record.image:  # else only settings were tried out
                await runtime.delete_image(tried, plugin.id)
        except errors.NotFound:
            pass
        except errors.MoorageError as error:
            log.warning("cannot remove image %s, the next start does: %s", tried, error)
        plugin.inbox.set_restored()
        if start:
            await plugin.start_if_due()


async def claim_namespace(client: "Client", ownership: Ownership, store: Store, boot: str) -> None:
    """Record that the namespace is this engine's. May be repeated.

    Raises: Conflict where it is another engine's, which may be dead, or a dockerd's, or where a process has an executor
    in it; nothing is changed then.
    """
    storage = ownership.mark(client.storage)
    labels = {ENGINE_ROOT: str(store.root), _BOOT_LABEL: boot, ENGINE_LABEL: ownership.engine_id}
    for _ in range(_ATTEMPTS):
        await refuse_executors(storage, client.namespace)
        owner = (await storage.list_leases()).get(ENGINE_LEASE)
        if owner == labels:
            return
        if owner is None:
            await _check_unclaimed(client, ownership)
        else:
            _check_owner(client.namespace, owner, ownership, store)
            try:
                await storage.delete_lease(ENGINE_LEASE)
            except errors.NotFound:
                pass
        try:
            await storage.create_lease(ENGINE_LEASE, labels=labels)
        except errors.Conflict:
            continue
        try:  # once more: an executor that began meanwhile refuses only what it finds
            await refuse_executors(storage, client.namespace)
        except errors.Conflict:
            await storage.delete_lease(ENGINE_LEASE)
            raise
        return
    raise errors.Unavailable(f"cannot claim namespace {client.namespace}: another engine claims it again and again")


def _check_owner(namespace: str, owner: Mapping[str, str], ownership: Ownership, store: Store) -> None:
    """Raises: Conflict where the lease names another engine than this one. One that moved with its directory is not."""
    root, engine = owner.get(ENGINE_ROOT, ""), owner.get(ENGINE_LABEL, "")
    is_here = _is_same(Path(root), store.root)
    if not engine:  # of an earlier version, which recorded no identity
        if not is_here:
            raise _foreign_namespace(namespace, f"the engine on {root}")
        return
    if engine != ownership.engine_id:
        if is_here:
            raise errors.Conflict(
                f"cannot use namespace {namespace}: it belongs to engine {engine} on {root}, and engine.json there has "
                f'lost that identity; set "engine_id" in it to {engine}'
            )
        raise _foreign_namespace(namespace, f"engine {engine} on {root}")
    choice = None if is_here else Store(Path(root)).find_identity()
    if choice is not None and choice.engine_id == engine:
        raise errors.Conflict(
            f"cannot use namespace {namespace}: {store.root} is a copy of {root}, and both are engine {engine}; "
            f"remove one of them, or delete {store.root / 'engine.json'} and give another --namespace"
        )


async def _check_unclaimed(client: "Client", ownership: Ownership) -> None:
    """Raises: Conflict for a namespace that no engine claims, with what another engine or a dockerd made in it."""
    containers = await client.list_containers()
    for each in containers:
        if _DOCKERD_LABEL in each.labels:
            raise errors.Conflict(
                f"cannot use namespace {client.namespace}: container {each.id} in it is a dockerd's and not "
                f"this engine's, which removes what it does not know; {_WAYS_OUT}"
            )
    labels = [each.labels for each in containers] + [each.labels for each in await client.storage.list_images()]
    engines = {each[ENGINE_LABEL] for each in labels if ENGINE_LABEL in each}
    if engines and ownership.engine_id not in engines:
        raise _foreign_namespace(client.namespace, f"engine {min(engines)}")


def _foreign_namespace(namespace: str, owner: str) -> errors.Conflict:
    return errors.Conflict(
        f"cannot use namespace {namespace}: it belongs to {owner}, whether that runs or not; {_WAYS_OUT}"
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other


async def find_foreign(client: "Client", ownership: Ownership) -> list[str]:
    """What is in the namespace and not this engine's, as text; images only where an engine made them."""
    containers = await client.list_containers()
    found = [f"container {it.id} ({_maker(it)})" for it in containers if not ownership.owns(it.labels, it.id)]
    for image in await client.storage.list_images():
        is_some_engines = ENGINE_LABEL in image.labels or PLUGIN_LABEL in image.labels
        if is_some_engines and not ownership.owns(image.labels):
            found.append(f"image {image.name} ({_engine(image.labels)})")
    found += _foreign_leases(await client.storage.list_leases(), ownership)
    for ingest in await client.storage.list_ingests():
        if ingest.ref.startswith((LEASE_PREFIX, UPLOAD_PREFIX)) and not ingest.ref.startswith(ownership.ref_prefix):
            found.append(f"upload {ingest.ref} (of another engine, or of an earlier version)")
    return found


def _foreign_leases(leases: Mapping[str, Mapping[str, str]], ownership: Ownership) -> Iterator[str]:
    for id, labels in leases.items():
        if id.startswith(LEASE_PREFIX) and labels.get(ENGINE_LABEL) != ownership.engine_id:
            yield f"lease {id} ({_engine(labels)})"


def _maker(container: "Container") -> str:
    if _DOCKERD_LABEL in container.labels:
        return "of a dockerd, which removes what it does not know"
    if ENGINE_LABEL in container.labels or PLUGIN_LABEL in container.labels:
        return _engine(container.labels)
    return "of another program"


def _engine(labels: Mapping[str, str]) -> str:
    engine = labels.get(ENGINE_LABEL)
    return f"of engine {engine}" if engine else "of another engine, or of an earlier version"


async def _restore_log_target(plugin: Supervisor) -> None:
    """A killed engine may have saved another policy or name, and not yet where the log keeper sends the lines."""
    try:
        await save_log_target(plugin)
    except errors.Unavailable as error:
        log.warning("%s", error)
