"""What is known of each plugin, on disk: one JSON document a plugin, complete before success is answered.

Everything in ``Store`` blocks: call it in a worker thread. One engine works on a data directory at a time (``lock``).
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from moorage import errors
from moorage._lib.json_document import decode_json
from moorage.engine.values import SCHEMA, EngineIdentity, LoadedRecords, PluginRecord
from moorage.executor import PLUGIN_NAMESPACE
from moorage.host.directory_tree import remove_tree_now
from moorage.host.files import make_directory, sync_directory, try_lock, write_atomically
from moorage.host.mounts import mount_points_below, unmount_all_below
from moorage.host.processes import has_file_open, send_signal

__all__ = (
    "RETAINED",
    "Store",
    "find_removals",
    "is_plugin_id",
    "list_retained",
    "new_id",
    "sweep_directories",
    "sweep_temporary",
)

log = logging.getLogger(__name__)

_MIGRATIONS: Mapping[int, Callable[[dict[str, object]], dict[str, object]]] = {}
"""From a version to the next one; the first is the present one, so there is none yet."""

_RECORD = "plugin.json"
_LOCK_ATTEMPTS = 10
_LOCK_PAUSE = 0.01  # seconds


def new_id() -> str:
    """The id of a new plugin: 64 hexadecimal digits."""
    return secrets.token_hex(32)


class Store:
    """The data directory of an engine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plugins = root / "plugins"
        self.temporary = root / "tmp"

    def lock(self, pid: int | None) -> int:
        """Lock the directory; returns the descriptor of the lock. ``pid``: the engine's, which others may signal.

        Raises: Conflict, Invalid.
        """
        try:
            for directory in (self.root, self.plugins, self.temporary):
                make_directory(directory, 0o711 if directory is self.root else 0o700)
            descriptor = self._try_lock()
        except OSError as error:
            raise errors.Invalid(
                f"cannot use {self.root} as data directory: {error.strerror} ({error.filename})"
            ) from error
        if descriptor is None:
            raise errors.Conflict(
                f"cannot use {self.root}: another engine (pid {self.find_owner() or 'unknown'}) works on it; "
                "stop that one, or give another directory with --root"
            )
        if pid is not None:
            text = f"{pid}\n".encode()
            try:
                # Over the old one, whose block it takes, because the disk may be full. Through an old one that stays no
                # process is signalled: none has the file open.
                os.pwrite(descriptor, text, 0)
                os.ftruncate(descriptor, len(text))
            except OSError as error:
                os.close(descriptor)
                raise errors.Invalid(f"cannot use {self.root} as data directory: {error.strerror}") from error
        return descriptor

    def _try_lock(self) -> int | None:
        """Lock it. Who asks whether it is locked has the lock for a moment, which is no reason to be refused."""
        for _ in range(_LOCK_ATTEMPTS):
            descriptor = try_lock(self.root / "lock")
            if descriptor is not None:
                return descriptor
            time.sleep(_LOCK_PAUSE)
        return None

    def is_locked(self) -> bool:
        """Whether an engine works on this directory now. Creates nothing.

        Raises: PermissionError where this user cannot find out.
        """
        try:
            os.stat(self.root / "lock")
            descriptor = try_lock(self.root / "lock")
        except PermissionError:
            raise
        except OSError:
            return False
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    def find_owner(self) -> int | None:
        """The process that has, or last had, the lock."""
        try:
            return int((self.root / "lock").read_text())
        except (OSError, ValueError):
            return None

    def signal_owner(self, number: int) -> bool:
        """Send a signal to the engine that has the lock; False where no process that is known for certain has it."""
        pid = self.find_owner()
        return pid is not None and send_signal(pid, number, lambda pid: has_file_open(pid, self.root / "lock"))

    def find_identity(self) -> EngineIdentity | None:
        """The identity that the first start chose, None before it, or where it cannot be read."""
        path = self.root / "engine.json"
        try:
            return _decode(path.read_bytes(), EngineIdentity, path)
        except (OSError, errors.MoorageError):
            return None

    def settle(self, containerd: str | None, namespace: str | None) -> EngineIdentity:
        """The identity, as the first start chose it, which this may be; None for what was not given.

        Until the namespace was claimed it may be replaced: nothing was made with it.

        Raises: Conflict where another one was made then; Invalid where it cannot be read; Unsupported for the data of
        a newer version.
        """
        path = self.root / "engine.json"
        try:
            made = _decode(path.read_bytes(), EngineIdentity, path)
        except FileNotFoundError:
            made = EngineIdentity(secrets.token_hex(16), "private", PLUGIN_NAMESPACE, is_claimed=False)
        settled = replace(made, containerd=containerd or made.containerd, namespace=namespace or made.namespace)
        for what, requested, found in (
            ("containerd", settled.containerd, made.containerd),
            ("namespace", settled.namespace, made.namespace),
        ):
            if requested != found and made.is_claimed:
                raise errors.Conflict(
                    f"cannot use {what} {requested}: the plugins in {self.root} were made with {found}; "
                    "leave the option out, or give another --root"
                )
        if settled != made or not path.exists():
            self._write(settled)
        return settled

    def claim(self) -> None:
        """Record that the namespace of the choice was claimed, so that the choice stands."""
        self._change(is_claimed=True)

    def record_exec_root(self, exec_root: Path) -> None:
        """Record the run-time directory that is used from now on."""
        self._change(exec_root=str(exec_root))

    def _change(self, **fields: object) -> None:
        choice = self.find_identity()
        if choice is not None and (changed := replace(choice, **fields)) != choice:
            self._write(changed)

    def _write(self, choice: EngineIdentity) -> None:
        write_atomically(self.root / "engine.json", msgspec.json.format(msgspec.json.encode(choice)) + b"\n")

    def load(self) -> LoadedRecords:
        """Every record that can be read. A bad one, or one of a newer version, is skipped, and its files stay."""
        records, problems = [], list(self._resume_removals())
        for directory in sorted(self.plugins.iterdir()):
            path = directory / _RECORD
            if not is_plugin_id(directory.name):
                continue
            try:
                record = _decode(path.read_bytes(), PluginRecord, path)
                if record.id != directory.name:
                    raise errors.Invalid(f"cannot read {path}: it is of plugin {record.id}")
                records.append(record)
            except FileNotFoundError:
                continue  # of a create or a remove that was cut off; the sweep takes it
            except (errors.MoorageError, OSError) as error:
                problems.append(str(error))
        return LoadedRecords(tuple(records), tuple(problems))

    def _resume_removals(self) -> Iterator[str]:
        """Give each directory ``<id>-removing`` its name back, with a record that says so; why one cannot be."""
        for directory, id in find_removals(self.plugins):
            path = directory / _RECORD
            try:
                record = _decode(path.read_bytes(), PluginRecord, path)
                if record.id != id or self.directory(id).exists():
                    raise errors.Invalid(f"cannot finish the removal in {directory}: there is another plugin {id}")
                write_atomically(path, msgspec.json.encode(replace(record, removing=True, enabled=False)))
                directory.rename(self.directory(id))
            except FileNotFoundError:
                continue  # the sweep removes it
            except (errors.MoorageError, OSError) as error:
                yield str(error)

    def save(self, record: PluginRecord) -> None:
        """Write a record; it is on disk when this returns. Raises: Unavailable where the disk does not take it."""
        directory = self.directory(record.id)
        try:
            if not directory.is_dir():
                directory.mkdir(mode=0o700)
                sync_directory(self.plugins)
            write_atomically(directory / _RECORD, msgspec.json.encode(record))
        except OSError as error:
            raise errors.Unavailable(f"cannot write the record of plugin {record.name}: {error.strerror}") from error

    def forget(self, id: str) -> None:
        """Remove a record, last of all that is of a plugin."""
        directory = self.directory(id)
        for name in (_RECORD, f".{_RECORD}.new"):  # the second is of a writer that was killed
            (directory / name).unlink(missing_ok=True)
        if directory.is_dir():
            directory.rmdir()
            sync_directory(self.plugins)

    def directory(self, id: str) -> Path:
        """Where everything of a plugin is that is not containerd's."""
        return self.plugins / id

    def propagated_mount(self, id: str) -> Path:
        """The host's side of a plugin's propagated mount."""
        return self.directory(id) / "propagated-mount"

    def is_free(self, id: str) -> bool:
        """Whether there is no record of this id, not even one that cannot be read (whose things are to stay)."""
        return not is_plugin_id(id) or not (self.directory(id) / _RECORD).exists()

    def sweep(self, known: frozenset[str]) -> None:
        """Remove what is temporary, and directories of plugins without a record; user data is moved to ``set-aside``.

        Raises: OSError for what stays.
        """
        sweep_temporary(self.temporary)
        sweep_directories(self.plugins, self.root / RETAINED, lambda name: name in known or not self.is_free(name))


Kind = TypeVar("Kind")


def _decode(raw: bytes, kind: type[Kind], path: Path) -> Kind:
    """The document, migrated to the present version. Raises: Invalid with the path, Unsupported for a newer one."""
    try:
        document = decode_json(raw)
        if not isinstance(document, dict):
            raise errors.Invalid(f"cannot read {path}: it is no JSON object")
        version = document.get("schema")
        if not isinstance(version, int):
            raise errors.Invalid(f"cannot read {path}: it has no schema version")
        if version > SCHEMA:
            raise errors.Unsupported(
                f"cannot read {path}: it was written by a newer moorage (schema {version}; this one knows {SCHEMA})"
            )
        for step in range(version, SCHEMA):
            document = {**_MIGRATIONS[step](document), "schema": step + 1}
        return msgspec.convert(document, kind, strict=False)
    except (ValueError, KeyError) as error:  # msgspec's errors are ValueErrors
        raise errors.Invalid(f"cannot read {path}: {error}") from error


RETAINED = "set-aside"
"""Directory below the data directory: what belonged to no plugin and may contain files of a user."""

_ID = re.compile(r"[0-9a-f]{64}")
_REMOVAL = re.compile(r"(?P<id>[0-9a-f]{64})-removing")
_PROPAGATED = "propagated-mount"
_HALF_MADE = frozenset({".plugin.json.new"})


def is_plugin_id(name: str) -> bool:
    """Whether a directory of this name is a plugin's."""
    return _ID.fullmatch(name) is not None


def find_removals(plugins: Path) -> Iterator[tuple[Path, str]]:
    """Directories ``<id>-removing``, each with the id: the removal of that plugin was begun."""
    for path in sorted(plugins.iterdir()):
        if (match := _REMOVAL.fullmatch(path.name)) is not None:
            yield path, match["id"]


def sweep_directories(plugins: Path, retained: Path, is_known: Callable[[str], bool]) -> None:
    """Remove the directories of plugins that were never finished, and finish removals that have no record any more.

    A directory that has other files than we make, or files in its propagated mount, is moved to ``aside``, and so is
    whatever has another name than a plugin's id; both are logged. Raises: OSError for what stays.
    """
    for path in sorted(plugins.iterdir()):
        removal = _REMOVAL.fullmatch(path.name)
        if is_known(path.name) or (removal is not None and (path / "plugin.json").exists()):
            continue
        if removal is not None:
            log.warning("finishing the removal of %s", path)
            _remove(path)
        elif is_plugin_id(path.name) and not _may_contain_user_data(path):
            log.warning("removing %s, which belongs to no plugin", path)
            _remove(path)
        else:
            _retain(path, retained)


def sweep_temporary(temporary: Path) -> None:
    """Remove what lies in the temporary directory. Raises: OSError for what stays."""
    for path in temporary.iterdir():
        log.warning("removing %s, which belongs to no plugin", path)
        _remove(path)


def list_retained(root: Path) -> list[str]:
    """What was moved to ``set-aside`` in a data directory. Raises: PermissionError where this user cannot list it."""
    try:
        found = sorted(os.listdir(root / RETAINED))
    except PermissionError:
        raise
    except OSError:
        return []
    paths = (root / RETAINED / name for name in found)
    return [f"{path} belonged to no plugin and was moved there, because it may contain data" for path in paths]


def _may_contain_user_data(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return True
    unmount_all_below(path)
    for entry in path.iterdir():
        if entry.name == _PROPAGATED and not entry.is_symlink() and entry.is_dir():
            if any(entry.iterdir()):
                return True
        elif entry.name not in _HALF_MADE:
            return True
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        unmount_all_below(path)
        remove_tree_now(path)
    else:
        path.unlink()


def _retain(path: Path, retained: Path) -> None:
    if path.is_dir() and not path.is_symlink() and mount_points_below(path):
        unmount_all_below(path)
    retained.mkdir(mode=0o700, exist_ok=True)
    target, number = retained / path.name, 0
    while os.path.lexists(target):
        number += 1
        target = retained / f"{path.name}.{number}"
    log.warning("moving %s to %s: it belongs to no plugin and may contain data", path, target)
    os.rename(path, target)
    for directory in (retained, path.parent):
        sync_directory(directory)
