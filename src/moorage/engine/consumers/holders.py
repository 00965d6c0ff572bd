"""Holders of a plugin that are not in its record: attached ones, and consumers with mounts."""

from collections.abc import Sequence

import anyio

from moorage.engine.values import Holder
from moorage.proxy.protocol import VolumeMount

__all__ = ("ConnectedHolders", "mount_holders")


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
