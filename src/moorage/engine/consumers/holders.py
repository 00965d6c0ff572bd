"""Holders of a plugin: how they come and go, attached ones, and consumers with mounts."""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import anyio

from moorage import errors
from moorage.engine.values import Holder
from moorage.proxy.protocol import VolumeMount

if TYPE_CHECKING:
    from moorage.engine.supervisor import Supervisor

__all__ = ("ConnectedHolders", "acquire", "mount_holders", "release")


class ConnectedHolders:
    """Holders of a plugin that last as long as their connection; those that last longer are in its record."""

    def __init__(self) -> None:
        self._attached: dict[str, tuple[Holder, anyio.Event]] = {}
        """By token, each with the event that asks the user to release the plugin."""
        self._released = anyio.Event()

    def all(self) -> tuple[Holder, ...]:
        """Every connected holder."""
        return tuple(user for user, _ in self._attached.values())

    def attach(self, user: Holder) -> None:
        """Add a user that lasts as long as its connection."""
        self._attached[user.token] = user, anyio.Event()

    def detach(self, token: str) -> bool:
        """Remove a user; whether there was one of this token."""
        is_found = self._attached.pop(token, None) is not None
        self._notify()
        return is_found

    def clear(self) -> None:
        """Remove every user."""
        self._attached.clear()
        self._notify()

    def find_request(self, token: str) -> anyio.Event | None:
        """The event that asks this user to release the plugin; None where there is no such user."""
        found = self._attached.get(token)
        return found[1] if found else None

    async def request_release(self, within: float) -> None:
        """Ask every user to release the plugin, and return when all have, or after ``within`` seconds."""
        for _, request in self._attached.values():
            request.set()
        with anyio.move_on_after(within):
            while self._attached:
                await self._released.wait()

    def _notify(self) -> None:
        # who waits has the event of before: several stops may wait at once
        self._released.set()
        self._released = anyio.Event()


async def acquire(plugin: "Supervisor", owner: str, *, is_attached: bool) -> Holder:
    """Add a user, one that lasts as long as its connection where it is attached. Raises: Conflict if disabled."""
    user = Holder(secrets.token_hex(16), owner, datetime.now(UTC))

    async def job() -> None:
        if not plugin.is_enabled:
            raise errors.Conflict(f"cannot add a holder to plugin {plugin.name}: it is disabled")
        if is_attached:
            plugin.connected.attach(user)
        else:
            await plugin.save(holders=(*plugin.record.holders, user))

    await plugin.inbox.do(job)
    return user


async def release(plugin: "Supervisor", token: str) -> None:
    """Remove a user. Raises: NotFound."""

    async def job() -> None:
        if not plugin.connected.detach(token):
            left = tuple(each for each in plugin.record.holders if each.token != token)
            if len(left) == len(plugin.record.holders):
                raise errors.NotFound(f"plugin {plugin.name} has no holder with this token")
            await plugin.save(holders=left)

    await plugin.inbox.do(job)


def mount_holders(mounts: Sequence[VolumeMount]) -> tuple[Holder, ...]:
    """Consumers that have mounted volumes, one holder each: "podman: volume data, 2 mounts".

    Their tokens release nothing: a consumer unmounts.
    """
    by_consumer: dict[str, list[VolumeMount]] = {}
    for mount in mounts:
        by_consumer.setdefault(mount.consumer.partition(" (pid ")[0] or "a consumer", []).append(mount)
    return tuple(
        Holder(f"mounts-{number}", f"{consumer}: {_describe(found)}", min(each.since for each in found))
        for number, (consumer, found) in enumerate(sorted(by_consumer.items()))
    )


def _describe(mounts: Sequence[VolumeMount]) -> str:
    volumes = sorted({mount.volume for mount in mounts})
    return (
        f"volume{'' if len(volumes) == 1 else 's'} {', '.join(volumes)}, "
        f"{len(mounts)} mount{'' if len(mounts) == 1 else 's'}"
    )
