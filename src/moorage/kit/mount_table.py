"""Which volumes there are and which users have them mounted, in one file that survives a kill at any moment.

What is counted are users, by id: a repeated Mount or Unmount, as callers send it after a lost answer, changes nothing.

The file says more than the answers do, never less, in this order. Mount of the first user: the id is saved as pending,
the volume is attached, the id is saved as a user, the caller is answered. A pending id of a killed plugin was never
answered, so it is dropped. Unmount of the last user: the id is removed in the file, the volume is detached, the caller
is answered. Where the kill was between the two, ``recover`` detaches it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moorage.kit.driver import log
from moorage.kit.failures import CallFailed
from moorage.kit.state_file import StateFile

__all__ = ("MountTable", "StoredVolume")

_VERSION = 1  # of the file


@dataclass(frozen=True)
class StoredVolume:
    """One volume."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    created_at: str = ""
    """As RFC 3339 has it."""
    users: tuple[str, ...] = ()
    """Ids, sorted."""
    mountpoint: str = ""
    """Empty while it is not attached."""


@dataclass
class _VolumeRecord:
    """A volume in the table."""

    volume: StoredVolume
    pending: set[str] = field(default_factory=set)
    is_new: bool = False
    """Whether its data are being made; no other call sees it."""
    is_removed: bool = False
    is_attached: bool = False
    """By this process."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Owned by the call that attaches, detaches or removes it; other volumes do not wait."""


class MountTable:
    """The volumes of a driver. All methods may be called by several threads at the same time."""

    def __init__(
        self, path: Path, attach: Callable[[StoredVolume], str], detach: Callable[[StoredVolume, bool], None]
    ) -> None:
        """``path`` of the file: below the propagated mount, where it outlives an upgrade.

        ``attach`` mounts a volume and returns where. ``detach`` undoes it, and with True also while files are open:
        before the plugin exits, and after a kill. Both may find their work done in part or whole, after a kill, and
        raise ``CallFailed`` or OSError.
        """
        self._file = StateFile(path)
        self._attach, self._detach = attach, detach
        self._entries: dict[str, _VolumeRecord] = {}
        self._lock = threading.Lock()

    # volumes

    def create(
        self, name: str, options: Mapping[str, str], make: Callable[[StoredVolume], None] = lambda volume: None
    ) -> None:
        """Add a volume after ``make`` has made its data; repeated with the same options it succeeds.

        ``make`` may find its work done in part or whole, after a kill.

        Raises:
            failures.CallFailed: there is one with other options, or ``make`` refuses
        """
        while True:
            with self._lock:
                created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                entry = self._entries.setdefault(
                    name, _VolumeRecord(StoredVolume(name, dict(options), created_at), is_new=True)
                )
            with entry.lock:
                if self._entries.get(name) is not entry:
                    continue  # it was removed, or could not be made, while this call waited
                if not entry.is_new and dict(entry.volume.options) != dict(options):
                    raise CallFailed(f"volume {name} exists with other options")
                if entry.is_new:
                    self._make(entry, make)
                return

    def _make(self, entry: _VolumeRecord, make: Callable[[StoredVolume], None]) -> None:
        try:
            make(entry.volume)
            with self._lock:
                entry.is_new = False
                self._save()
        except BaseException:
            with self._lock:
                del self._entries[entry.volume.name]
            raise

    def get(self, name: str) -> StoredVolume:
        """A volume.

        Raises:
            failures.CallFailed: there is none of this name
        """
        with self._lock:
            return self._known(name).volume

    def volumes(self) -> list[StoredVolume]:
        """All volumes, by name."""
        with self._lock:
            return [
                entry.volume for _, entry in sorted(self._entries.items()) if not entry.is_removed and not entry.is_new
            ]

    def remove(self, name: str, delete: Callable[[StoredVolume], None]) -> None:
        """Remove a volume; ``delete`` removes its data, and is called again after a kill.

        Raises:
            failures.CallFailed: there is none of this name, or it is in use
        """
        with self._locked(name) as entry:
            if entry.volume.users or entry.pending:
                raise CallFailed(f"volume {name} is in use by {', '.join(entry.volume.users)}")
            self._change(entry, is_removed=True)
            try:
                delete(entry.volume)
            except BaseException:
                self._change(entry, is_removed=False)
                raise
            with self._lock:
                del self._entries[name]
                self._save()

    # users

    def mount(self, name: str, user: str) -> str:
        """Mount a volume for a user; its path. Repeated it succeeds.

        Raises:
            failures.CallFailed: there is none of this name, or it cannot be attached
        """
        if not user:
            raise CallFailed("a mount needs the ID of its user")
        with self._locked(name) as entry:
            users = {*entry.volume.users, user}
            if not entry.is_attached:
                self._change(entry, pending={user} - {*entry.volume.users})
                try:
                    point = self._attached(entry)
                except BaseException:
                    self._undo_attach(entry)
                    self._change(entry, pending=set())
                    raise
                self._change(entry, replace(entry.volume, users=tuple(sorted(users)), mountpoint=point), pending=set())
            elif user not in entry.volume.users:
                self._change(entry, replace(entry.volume, users=tuple(sorted(users))))
            return entry.volume.mountpoint

    def unmount(self, name: str, user: str) -> None:
        """A user does not need a volume any more; the last one unmounts it. An unknown user is no failure.

        Raises:
            failures.CallFailed: there is none of this name, the ID is empty, or it cannot be detached; the user stays
        """
        if not user:
            raise CallFailed("an unmount needs the ID of its user")
        with self._locked(name) as entry:
            before = entry.volume
            users = tuple(each for each in before.users if each != user)
            if users == before.users:
                return
            if users:
                self._change(entry, replace(before, users=users))
                return
            self._change(entry, replace(before, users=(), mountpoint=""))
            try:
                self._detached(entry, is_lazy=False)
            except BaseException:
                self._change(entry, before)
                raise

    # start and stop

    def recover(self, delete: Callable[[StoredVolume], None] = lambda volume: None) -> None:
        """Read the file and make the mounts as it says, after a restart or a kill. What fails is logged, and tried
        again by the next Mount.

        Raises:
            OSError: the file cannot be read or written
            ValueError: it is not the file of a table, or one of a newer kit
        """
        document = self._file.load()
        if document.get("version", _VERSION) != _VERSION:
            raise ValueError(f"{self._file.path} is of another version of the kit: {document['version']}")
        self._entries = {name: _entry(name, each) for name, each in document.get("volumes", {}).items()}
        for name, entry in list(self._entries.items()):
            try:
                self._recover(entry, delete)
                if entry.is_removed:
                    del self._entries[name]
            except (CallFailed, OSError) as error:
                log(f"cannot restore volume {name}: {error}")
        if document:
            self._save()

    def detach_all(self) -> None:
        """Detach every volume before the plugin exits. Users stay in the file, for which ``recover`` attaches it."""
        for entry in list(self._entries.values()):
            with entry.lock:
                if entry.is_attached:
                    try:
                        self._detached(entry, is_lazy=True)
                    except (CallFailed, OSError) as error:
                        log(f"cannot detach volume {entry.volume.name}: {error}")

    def _recover(self, entry: _VolumeRecord, delete: Callable[[StoredVolume], None]) -> None:
        entry.pending.clear()
        # also one in use: a mount of the killed process, a FUSE one for example, may answer nothing any more
        self._undo_attach(entry)
        if entry.is_removed:
            delete(entry.volume)
        elif entry.volume.users:
            entry.volume = replace(entry.volume, mountpoint=self._attached(entry))

    # parts

    def _attached(self, entry: _VolumeRecord) -> str:
        try:
            point = self._attach(entry.volume)
        except OSError as error:
            raise CallFailed(f"cannot mount volume {entry.volume.name}: {error.strerror or error}") from error
        entry.is_attached = True
        return point

    def _undo_attach(self, entry: _VolumeRecord) -> None:
        try:
            self._detached(entry, is_lazy=True)
        except CallFailed as error:
            log(str(error))  # the failure of the attach is what the caller gets

    def _detached(self, entry: _VolumeRecord, *, is_lazy: bool) -> None:
        try:
            self._detach(entry.volume, is_lazy)
        except OSError as error:
            raise CallFailed(f"cannot unmount volume {entry.volume.name}: {error.strerror or error}") from error
        entry.is_attached = False

    @contextmanager
    def _locked(self, name: str) -> Iterator[_VolumeRecord]:
        """The entry of a volume, for this call only. Raises: CallFailed without such a volume."""
        with self._lock:
            entry = self._known(name)
        with entry.lock:
            with self._lock:
                if self._known(name) is not entry:
                    raise CallFailed(f"no such volume: {name}")
            yield entry

    def _known(self, name: str) -> _VolumeRecord:
        entry = self._entries.get(name)
        if entry is None or entry.is_removed or entry.is_new:
            raise CallFailed(f"no such volume: {name}")
        return entry

    def _change(
        self,
        entry: _VolumeRecord,
        volume: StoredVolume | None = None,
        *,
        pending: set[str] | None = None,
        is_removed: bool | None = None,
    ) -> None:
        """Change an entry and save the table; what cannot be saved is not changed."""
        before = entry.volume, entry.pending, entry.is_removed
        with self._lock:
            entry.volume = volume if volume is not None else entry.volume
            entry.pending = pending if pending is not None else entry.pending
            entry.is_removed = is_removed if is_removed is not None else entry.is_removed
            try:
                self._save()
            except BaseException:
                entry.volume, entry.pending, entry.is_removed = before
                raise

    def _save(self) -> None:
        known = {name: _document(each) for name, each in self._entries.items() if not each.is_new}
        self._file.save({"version": _VERSION, "volumes": known})


def _document(entry: _VolumeRecord) -> dict[str, Any]:
    return {
        "options": dict(entry.volume.options),
        "created_at": entry.volume.created_at,
        "users": list(entry.volume.users),
        "pending": sorted(entry.pending),
        "removed": entry.is_removed,
    }


def _entry(name: str, document: Mapping[str, Any]) -> _VolumeRecord:
    volume = StoredVolume(name, dict(document["options"]), str(document["created_at"]), tuple(document["users"]))
    return _VolumeRecord(volume, set(document["pending"]), bool(document["removed"]))
