"""What must outlive a run of a plugin, and the proxy itself: what consumers have that they have not returned.

Saved as one JSON file a plugin. The options of a volume are never in it: they have passwords.
"""

from datetime import datetime
from typing import Literal

import msgspec
from msgspec import Struct, field

from moorage.proxy.protocol import VolumeMount

__all__ = ("UNKNOWN_RUN", "Ledger", "LedgerLog", "LedgerMount", "MountKey", "load")

MountKey = tuple[str, str]
"""Volume, and the consumer's id of the mount."""

UNKNOWN_RUN = -1
"""Of a mount that the plugin may know or not; it is requested again."""
_MOST_VOLUMES = 10_000
"""Of a plugin that are known while it does not run; each change of the ledger writes all of them."""
_MOST_LOST = 1000
"""Mounts that consumers may still return although they do not exist any more; the oldest is forgotten first."""


class LedgerMount(Struct):
    """A mount that is requested, made, or being returned."""

    volume: str
    id: str
    consumer: str
    since: datetime
    run: int
    """The run of the plugin that knows it, or ``UNKNOWN_RUN``."""
    phase: Literal["mounting", "mounted", "unmounting"] = "mounting"
    path: str = ""
    """On the host."""
    mount_point: str = ""
    """Of the file system that the plugin mounted, at or above ``path``; empty where ``path`` is a plain directory."""
    problem: str = ""
    is_stale: bool = False
    is_returned: bool = False
    """Whether its consumer has returned it and forgotten it, but the Unmount may not have been done: it is undone."""

    def doubt(self) -> None:
        """Its Unmount may have been done or not, and its consumer got an error or no answer.

        podman takes it for mounted then, so that it is made again, which changes nothing where it exists.
        """
        self.phase, self.run = "mounted", UNKNOWN_RUN
        self.unmount_requested()

    def unmount_requested(self) -> None:
        """dockerd forgets a mount whatever the answer is, and would leave it to the volume for ever."""
        self.is_returned = self.consumer.startswith("dockerd")

    @property
    def key(self) -> MountKey:
        """What it is known by."""
        return self.volume, self.id

    def as_mount(self) -> VolumeMount:
        """For the engine."""
        return VolumeMount(
            self.volume, self.id, self.path, self.consumer, self.since, self.problem, self.is_stale, self.mount_point
        )


class LedgerLog(Struct):
    """Logging that was started and not stopped."""

    file: str
    body: bytes
    """Of its StartLogging."""
    run: int
    problem: str = ""


class Ledger(Struct):
    """Of one plugin. Changed in memory by the core, and saved before anything that relies on it."""

    mounts: list[LedgerMount] = field(default_factory=list)
    logs: list[LedgerLog] = field(default_factory=list)
    metrics_run: int | None = None
    """The run that StartMetrics was sent to; None where it was not, or StopMetrics was."""
    volumes: dict[str, str] = field(default_factory=dict)
    """Known volumes with their path on the host, empty if unknown."""
    podman: list[str] = field(default_factory=list)
    """Volumes that podman has used."""
    is_podman_active: bool = False
    """Whether podman has activated the plugin, as it does for each volume of it that it has."""
    scope: str = ""
    """From VolumeDriver.Capabilities."""
    log_capabilities: bytes = b""
    """The plugin's answer to LogDriver.Capabilities."""
    covered: dict[str, list[str]] = field(default_factory=dict)
    """Mount points by volume at which a dead mount or a placeholder may be, below the present one."""
    lost: list[MountKey] = field(default_factory=list)
    """Mounts that were dropped without the consumer's Unmount, which then succeeds (row P11)."""

    def encode(self) -> bytes:
        """As it is saved."""
        return msgspec.json.encode(self)

    def find(self, key: MountKey) -> LedgerMount | None:
        """The mount of this key."""
        return next((each for each in self.mounts if each.id == key[1] and each.volume == key[0]), None)

    def find_log(self, file: str) -> LedgerLog | None:
        """The log of this FIFO."""
        return next((each for each in self.logs if each.file == file), None)

    def drop(self, key: MountKey, *, is_lost: bool = False) -> None:
        """Remove a mount; ``is_lost`` if its consumer may still return it."""
        self.mounts = [each for each in self.mounts if each.key != key]
        if is_lost and key not in self.lost:
            self.lost = [*self.lost, key][-_MOST_LOST:]
        elif not is_lost and key in self.lost:
            self.lost.remove(key)

    def drop_log(self, file: str) -> None:
        """Remove a log."""
        self.logs = [each for each in self.logs if each.file != file]

    def cover(self, entry: LedgerMount) -> bool:
        """Note that a dead mount or a placeholder may be at this mount from now on. Whether that is new."""
        points = self.covered.setdefault(entry.volume, [])
        if not entry.mount_point or entry.mount_point in points:
            if not points:
                del self.covered[entry.volume]
            return False
        points.append(entry.mount_point)
        return True

    def learn(self, volume: str, path: str) -> bool:
        """Note a volume. Whether that changes anything; an unknown path replaces no known one."""
        if self.volumes.get(volume) == path or (not path and volume in self.volumes):
            return False
        if volume not in self.volumes and len(self.volumes) >= _MOST_VOLUMES:
            return False
        self.volumes[volume] = path
        return True

    def forget_others(self, volumes: set[str]) -> bool:
        """The plugin lists these volumes and no others. Whether that changes anything."""
        others = [each for each in self.volumes if each not in volumes]
        for each in others:
            del self.volumes[each]
        return bool(others)

    def forget_volume(self, volume: str) -> None:
        """A volume was removed: with it go its mounts, which their consumers may still return."""
        self.volumes.pop(volume, None)
        if volume in self.podman:
            self.podman.remove(volume)
            self.is_podman_active = bool(self.podman)
        for each in [each for each in self.mounts if each.volume == volume]:
            self.drop(each.key, is_lost=True)

    def note_podman(self, volume: str) -> bool:
        """Note that podman uses the plugin, and this volume if it is not empty. Whether that is new."""
        is_new = not self.is_podman_active or (volume != "" and volume not in self.podman)
        self.is_podman_active = True
        if volume and volume not in self.podman:
            self.podman.append(volume)
        return is_new

    @property
    def is_used_by_podman(self) -> bool:
        """Whether podman's own list of volumes would fail without this plugin's socket."""
        return self.is_podman_active or bool(self.podman)

    def outstanding(self) -> tuple[VolumeMount, ...]:
        """The mounts that consumers have, for the engine."""
        return tuple(each.as_mount() for each in self.mounts if each.phase != "mounting")


def load(raw: bytes) -> Ledger:
    """A saved ledger, after the proxy was killed. Raises: msgspec.MsgspecError.

    A mount whose return had begun is in doubt. One that had been requested and not been answered is undone by the core.
    """
    ledger = msgspec.json.decode(raw, type=Ledger)
    for each in ledger.mounts:
        if each.phase == "unmounting":
            each.doubt()
    return ledger
