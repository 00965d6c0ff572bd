"""The run-time directory of an engine: whose it is, who works in it, in which mount namespace. Everything here blocks.

``engine.json`` in it names the engine, so that ``moorage down`` and the next engine touch only their own; ``lock`` is
locked for as long as an engine works in it.
"""

import os
from pathlib import Path

import msgspec
from msgspec import Struct

from moorage import errors
from moorage.host import proc
from moorage.host.files import make_directory, try_lock, write_atomically
from moorage.oci_runtime.trial import TRIAL_PART, TRIAL_RECORD
from moorage.runs.network_files import NETWORK_PART, NetworkFiles

__all__ = ("RUNTIME_PARTS", "RuntimeDirectory", "RuntimeOwner", "check_mount_namespace")

RUNTIME_PARTS = ("p", "u", "bundles", "runtime-root", "containerd", "keeper", "proxy", TRIAL_PART, NETWORK_PART)
"""What an engine makes in its run-time directory, besides the API's socket."""

_RECORD, _LOCK = "engine.json", "lock"


class RuntimeOwner(Struct, frozen=True):
    """Who works in a run-time directory, or was the last to."""

    engine_id: str
    root: str
    """Its data directory."""
    socket: str
    """Where its API listens."""
    boot_id: str
    mount_namespace: str
    """Its identity, as ``host.proc.namespace`` returns it: what the engine mounts is visible there only."""


class RuntimeDirectory:
    """One run-time directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def find_owner(self) -> RuntimeOwner | None:
        """Whose it is; None where nothing says so, as in one of an earlier version."""
        try:
            return msgspec.json.decode((self.path / _RECORD).read_bytes(), type=RuntimeOwner)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def has_leftovers(self) -> bool:
        """Whether plugins, or what they run on, may be running from here."""
        return any(self._has_entries(part) for part in RUNTIME_PARTS if part != NETWORK_PART)

    def _has_entries(self, part: str) -> bool:
        try:
            with os.scandir(self.path / part) as entries:
                return any(entries)
        except OSError:
            return False

    def claim(self, engine_id: str, root: Path, socket: Path) -> int:
        """Make it this engine's; a descriptor that keeps others out as long as it is open.

        Raises: Conflict where another engine works in it, or has left something there, or where this engine worked in
        another mount namespace and has left something there; Invalid where it cannot be used.
        """
        try:
            make_directory(self.path, 0o711)
            descriptor = self._lock()
        except OSError as error:
            raise errors.Invalid(f"cannot use {self.path} for run-time files: {error.strerror}") from error
        owner = self.find_owner()
        if descriptor is None:
            user = f"the engine on {owner.root}" if owner is not None else "another engine"
            raise errors.Conflict(
                f"cannot use {self.path} for run-time files: {user} works in it; give another one with --exec-root"
            )
        try:
            if owner is not None:
                self._check(owner, engine_id, root)
            made = RuntimeOwner(engine_id, str(root), str(socket), proc.boot_id(), proc.namespace("mnt"))
            write_atomically(self.path / _RECORD, msgspec.json.encode(made) + b"\n")
        except OSError as error:
            os.close(descriptor)
            raise errors.Invalid(f"cannot use {self.path} for run-time files: {error.strerror}") from error
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _lock(self) -> int | None:
        while (descriptor := try_lock(self.path / _LOCK)) is not None:
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(self.path / _LOCK)):
                    return descriptor
            except FileNotFoundError:
                make_directory(self.path, 0o711)
            os.close(descriptor)  # of a directory that was cleared just now
        return None

    def _check(self, owner: RuntimeOwner, engine_id: str, root: Path) -> None:
        """Raises: Conflict where what is in here is another engine's, or was mounted in another mount namespace."""
        if not self.has_leftovers() or owner.boot_id != proc.boot_id():
            return
        if owner.engine_id != engine_id:
            raise errors.Conflict(
                f"cannot use {self.path} for run-time files: plugins of the engine on {owner.root} may run from it; "
                f"stop those with moorage down --root {owner.root}, or give another directory with --exec-root"
            )
        check_mount_namespace(owner, root)

    def clear(self) -> None:
        """Remove the record and the lock, last of all, and the directory too where nothing else is in it."""
        for name in (_RECORD, f".{_RECORD}.new", TRIAL_RECORD, f".{TRIAL_RECORD}.new", _LOCK):
            (self.path / name).unlink(missing_ok=True)
        NetworkFiles(self.path / NETWORK_PART).remove()
        try:
            self.path.rmdir()
        except OSError:
            pass  # it does not exist, or has files of others


def check_mount_namespace(owner: RuntimeOwner, root: Path) -> None:
    """Raises: Conflict where this process is in another mount namespace than an engine that has left mounts."""
    if owner.mount_namespace == proc.namespace("mnt") or owner.boot_id != proc.boot_id():
        return
    pid = _find_process_in(owner.mount_namespace)
    if pid is not None:  # else the kernel has removed the namespace, and its mounts with it
        raise errors.Conflict(
            f"cannot work on {root} from here: its engine mounted file systems in another mount namespace "
            f"({owner.mount_namespace}, this is {proc.namespace('mnt')}); run this in it: "
            f"nsenter --mount={proc.namespace_path('mnt', pid)} moorage ..."
        )


def _find_process_in(namespace: str) -> int | None:
    return next((pid for pid in proc.pids() if proc.namespace("mnt", pid) == namespace), None)
