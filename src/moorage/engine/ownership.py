"""What an engine owns in containerd, defined once, and whose namespace it is.

Everything that an engine creates there bears its identity: containers, images, leases, snapshots and content in a
label, uploads, which have none, in what their refs begin with. What bears another engine's identity is never touched,
whether that engine lives or not. What bears none is ours only where our own records name its plugin (earlier versions
wrote no identity); everything else is reported and left alone. Source: docs/adr/0023-what-an-engine-owns.md.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moorage import errors
from moorage.distribution.package import UPLOAD_PREFIX
from moorage.engine.store import Store

if TYPE_CHECKING:
    from moorage.containerd import Client
    from moorage.containerd.storage import Storage
    from moorage.containerd.types import Container

__all__ = (
    "ENGINE_LABEL",
    "LEASE_PREFIX",
    "PLUGIN_LABEL",
    "Ownership",
    "claim_namespace",
    "find_foreign",
    "plugin_of",
)

ENGINE_LABEL = "moorage.engine"
"""Label of everything that an engine creates: the id of the engine, which its data directory records."""

PLUGIN_LABEL = "moorage.plugin"
"""Label of a container, and of an image record: the id of the plugin that it belongs to."""

LEASE_PREFIX = "moorage-"
"""What the ids of leases begin with that last as long as one operation."""

_OWNER_LEASE, _ROOT_LABEL, _BOOT_LABEL = "moorage.owner", "moorage.root", "moorage.boot"
_DOCKERD_LABEL = "com.docker/engine.bundle.path"
"""Label of every container of a dockerd. Source: moby libcontainerd/remote/client_linux.go."""

_WAYS_OUT = "give another one with --namespace, or use --containerd private"
_ATTEMPTS = 5  # two engines that claim a namespace at the same moment: one of them finds the other's claim


class Ownership:
    """Tells what belongs to one engine."""

    def __init__(self, engine_id: str, is_recorded: Callable[[str], bool]) -> None:
        """``is_recorded``: whether there is a record of the plugin with this id, also one that cannot be read."""
        self.engine_id = engine_id
        self._is_recorded = is_recorded

    @property
    def marks(self) -> Mapping[str, str]:
        """Labels of everything that this engine creates."""
        return {ENGINE_LABEL: self.engine_id}

    @property
    def ref_prefix(self) -> str:
        """What the refs of this engine's uploads begin with."""
        return f"{LEASE_PREFIX}{self.engine_id}-"

    def mark(self, storage: "Storage") -> "Storage":
        """The storage, through which everything is created as this engine's."""
        return storage.marked(self.marks, self.ref_prefix)

    def owns(self, labels: Mapping[str, str], container: str = "") -> bool:
        """Whether an object with these labels is this engine's; ``container``: its id, where it is one."""
        engine = labels.get(ENGINE_LABEL)
        if engine is not None:
            return engine == self.engine_id
        return self._is_recorded(plugin_of(labels, container))

    def is_recorded(self, plugin: str) -> bool:
        """Whether there is a record of the plugin with this id, also one that cannot be read."""
        return self._is_recorded(plugin)


def plugin_of(labels: Mapping[str, str], container: str = "") -> str:
    """The id of the plugin that an object belongs to, as its label or the id of the container says."""
    return labels.get(PLUGIN_LABEL) or container.partition(".")[0]


async def claim_namespace(client: "Client", ownership: Ownership, store: Store, boot: str) -> None:
    """Record that the namespace is this engine's. May be repeated.

    Raises: Conflict where it is another engine's, which may be dead, or a dockerd's; nothing is changed then.
    """
    storage = ownership.mark(client.storage)
    labels = {_ROOT_LABEL: str(store.root), _BOOT_LABEL: boot, ENGINE_LABEL: ownership.engine_id}
    for _ in range(_ATTEMPTS):
        owner = (await storage.list_leases()).get(_OWNER_LEASE)
        if owner == labels:
            return
        if owner is None:
            await _check_unclaimed(client, ownership)
        else:
            _check_owner(client.namespace, owner, ownership, store)
            try:
                await storage.delete_lease(_OWNER_LEASE)
            except errors.NotFound:
                pass
        try:
            await storage.create_lease(_OWNER_LEASE, labels=labels)
        except errors.Conflict:
            continue
        return
    raise errors.Unavailable(f"cannot claim namespace {client.namespace}: another engine claims it again and again")


def _check_owner(namespace: str, owner: Mapping[str, str], ownership: Ownership, store: Store) -> None:
    """Raises: Conflict where the lease names another engine than this one. One that moved with its directory is not."""
    root, engine = owner.get(_ROOT_LABEL, ""), owner.get(ENGINE_LABEL, "")
    is_here = _is_same(Path(root), store.root)
    if not engine:  # of an earlier version, which recorded no identity
        if not is_here:
            raise _theirs(namespace, f"the engine on {root}")
        return
    if engine != ownership.engine_id:
        if is_here:
            raise errors.Conflict(
                f"cannot use namespace {namespace}: it belongs to engine {engine} on {root}, and engine.json there has "
                f'lost that identity; set "engine_id" in it to {engine}'
            )
        raise _theirs(namespace, f"engine {engine} on {root}")
    choice = None if is_here else Store(Path(root)).find_choice()
    if choice is not None and choice.engine_id == engine:
        raise errors.Conflict(
            f"cannot use namespace {namespace}: {store.root} is a copy of {root}, and both are engine {engine}; "
            f"remove one of them, or delete {store.root / 'engine.json'} and give another --namespace"
        )


async def _check_unclaimed(client: "Client", ownership: Ownership) -> None:
    """Raises: Conflict for a namespace that nobody claims, and that holds what another engine or a dockerd made."""
    containers = await client.list_containers()
    for each in containers:
        if _DOCKERD_LABEL in each.labels:
            raise errors.Conflict(
                f"cannot use namespace {client.namespace}: container {each.id} in it is not ours but a dockerd's, "
                f"which removes what it does not know; {_WAYS_OUT}"
            )
    labels = [each.labels for each in containers] + [each.labels for each in await client.storage.list_images()]
    engines = {each[ENGINE_LABEL] for each in labels if ENGINE_LABEL in each}
    if engines and ownership.engine_id not in engines:
        raise _theirs(client.namespace, f"engine {min(engines)}")


def _theirs(namespace: str, who: str) -> errors.Conflict:
    return errors.Conflict(
        f"cannot use namespace {namespace}: it belongs to {who}, whether that runs or not; {_WAYS_OUT}"
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
