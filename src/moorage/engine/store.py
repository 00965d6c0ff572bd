"""What is known of each plugin, on disk: one JSON document a plugin, complete before success is answered.

Everything in ``Store`` blocks: call it in a worker thread. One engine works on a data directory at a time (``lock``).
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from moorage import errors
from moorage._lib.atomic_file import sync_directory, write_atomically
from moorage._lib.filelock import try_lock
from moorage._lib.json_document import decode_json
from moorage._lib.values import repr_without
from moorage.engine.leftovers import ASIDE, find_removals, is_plugin_id, sweep_directories, sweep_temporary
from moorage.engine.lifecycle import DEFAULT_POLICY, RestartPolicy
from moorage.engine.values import Holder, LastExit
from moorage.executor import PLUGIN_NAMESPACE
from moorage.host.inheritance import make_directory
from moorage.host.process_identity import has_open, send_signal
from moorage.plugins import NO_CONFINEMENT, NO_OVERRIDES, Confinement, Overrides, Privilege

__all__ = ("SCHEMA", "Choice", "Loaded", "Record", "Store", "Version", "new_id")

log = logging.getLogger(__name__)

SCHEMA = 1
"""Version of everything in the data directory."""

_MIGRATIONS: Mapping[int, Callable[[dict[str, object]], dict[str, object]]] = {}
"""From a version to the next one; the first is the present one, so there is none yet."""

_RECORD = "plugin.json"


class Version(Struct, frozen=True):
    """What an upgrade changes of a plugin; each field as the record has it."""

    reference: str
    config: str
    image: str
    digest: str
    snapshotter: str
    snapshot: str
    overrides: Overrides
    warnings: tuple[str, ...]
    granted: tuple[Privilege, ...] | None = None
    """What was granted to it; None in a record of a version that did not note that."""
    attended: tuple[Privilege, ...] = ()
    """What of it a person granted after it was shown."""

    __repr__ = repr_without("config", "overrides", "granted", "attended")

    @classmethod
    def of(cls, record: "Record") -> "Version":
        """The one that a record has."""
        return cls(**{name: getattr(record, name) for name in cls.__struct_fields__})

    def as_fields(self) -> dict[str, object]:
        """What a record with this version has in the place of its own."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


class Record(Struct, frozen=True):
    """One plugin as it is on disk. Values that a user set stay out of ``repr``, and so of logs."""

    id: str
    name: str
    reference: str
    config: str
    """The text of its config.json."""
    image: str
    """Name of the image record that holds its content and its root in containerd."""
    digest: str
    snapshotter: str
    snapshot: str
    """Key of the active snapshot that is its root."""
    created_at: datetime
    enabled: bool = False
    overrides: Overrides = NO_OVERRIDES
    policy: RestartPolicy = DEFAULT_POLICY
    confinement: Confinement = NO_CONFINEMENT
    """What the user said of its confinement; the rest is the engine's default."""
    attended_widenings: tuple[Privilege, ...] = ()
    """What of it gives more than the default and was granted by a person."""
    id_base: int = 0
    """First host id of its user namespace, from when it first had one; 0 before."""
    run: int = 0
    """Number of its last run; the run's container is ``<id>.<run>``."""
    restarts: int = 0
    failures: int = 0
    """Ends in a row, for the next pause."""
    last_exit: LastExit | None = None
    next_try_at: datetime | None = None
    holders: tuple[Holder, ...] = ()
    warnings: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Further names, by which it is found, too."""
    removing: bool = False
    """A removal was begun, and goes on."""
    granted: tuple[Privilege, ...] | None = None
    attended: tuple[Privilege, ...] = ()
    previous: Version | None = None
    """The version to go back to unless the present one, which an upgrade is trying out, becomes ready."""
    schema: int = SCHEMA

    __repr__ = repr_without("config", "overrides", "granted", "attended")

    @property
    def container(self) -> str:
        """Id of the container of its last run."""
        return f"{self.id}.{self.run}"


class Choice(Struct, frozen=True):
    """What was settled at the first start on a data directory, and never changes."""

    engine_id: str
    containerd: str
    """``private``, ``system`` or an address."""
    namespace: str
    is_claimed: bool = True
    """Whether the namespace was ever claimed for this engine; another choice is possible before."""
    exec_root: str = ""
    """The run-time directory of the last start, which commands use where none is given; empty before the first."""
    schema: int = SCHEMA


class Loaded(Struct, frozen=True):
    """What was found: the records, and in words what could not be read."""

    records: tuple[Record, ...]
    problems: tuple[str, ...] = ()


def new_id() -> str:
    """The id of a new plugin: 64 hexadecimal digits."""
    return secrets.token_hex(32)


class Store:
    """The data directory of an engine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plugins = root / "plugins"
        self.temporary = root / "tmp"

    def lock(self) -> int:
        """Make the directory ours alone; a descriptor that keeps it so. Raises: Conflict, Invalid."""
        try:
            for directory in (self.root, self.plugins, self.temporary):
                make_directory(directory, 0o711 if directory is self.root else 0o700)
            descriptor = try_lock(self.root / "lock")
        except OSError as error:
            raise errors.Invalid(
                f"cannot use {self.root} as data directory: {error.strerror} ({error.filename})"
            ) from error
        if descriptor is None:
            raise errors.Conflict(
                f"cannot use {self.root}: another engine (pid {self.find_owner() or 'unknown'}) works on it; "
                "stop that one, or give another directory with --root"
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor

    def is_locked(self) -> bool:
        """Whether an engine works on this directory now. Makes nothing."""
        if not os.path.exists(self.root / "lock"):
            return False
        try:
            descriptor = try_lock(self.root / "lock")
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
        return pid is not None and send_signal(pid, number, lambda pid: has_open(pid, self.root / "lock"))

    def find_choice(self) -> Choice | None:
        """The choice of the first start, None before it, or where it cannot be read."""
        path = self.root / "engine.json"
        try:
            return _decode(path.read_bytes(), Choice, path)
        except (OSError, errors.MoorageError):
            return None

    def settle(self, containerd: str | None, namespace: str | None) -> Choice:
        """The choice of the first start, which this may be; None for what was not asked for.

        Until the namespace was claimed another choice may take its place: nothing was made with it.

        Raises: Conflict where another one was made then; Invalid where it cannot be read; Unsupported for the data of
        a newer version.
        """
        path = self.root / "engine.json"
        try:
            made = _decode(path.read_bytes(), Choice, path)
        except FileNotFoundError:
            made = Choice(secrets.token_hex(16), "private", PLUGIN_NAMESPACE, is_claimed=False)
        settled = replace(made, containerd=containerd or made.containerd, namespace=namespace or made.namespace)
        for what, asked, found in (
            ("containerd", settled.containerd, made.containerd),
            ("namespace", settled.namespace, made.namespace),
        ):
            if asked != found and made.is_claimed:
                raise errors.Conflict(
                    f"cannot use {what} {asked}: the plugins in {self.root} were made with {found}; "
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
        choice = self.find_choice()
        if choice is not None and (changed := replace(choice, **fields)) != choice:
            self._write(changed)

    def _write(self, choice: Choice) -> None:
        write_atomically(self.root / "engine.json", msgspec.json.format(msgspec.json.encode(choice)) + b"\n")

    def load(self) -> Loaded:
        """Every record that can be read. A bad one, or one of a newer version, is skipped, and its files stay."""
        records, problems = [], list(self._resume_removals())
        for directory in sorted(self.plugins.iterdir()):
            path = directory / _RECORD
            if not is_plugin_id(directory.name):
                continue
            try:
                record = _decode(path.read_bytes(), Record, path)
                if record.id != directory.name:
                    raise errors.Invalid(f"cannot read {path}: it is of plugin {record.id}")
                records.append(record)
            except FileNotFoundError:
                continue  # of a create or a remove that was cut off; the sweep takes it
            except (errors.MoorageError, OSError) as error:
                problems.append(str(error))
        return Loaded(tuple(records), tuple(problems))

    def _resume_removals(self) -> Iterator[str]:
        """Give each directory ``<id>-removing`` its name back, with a record that says so; why one cannot be."""
        for directory, id in find_removals(self.plugins):
            path = directory / _RECORD
            try:
                record = _decode(path.read_bytes(), Record, path)
                if record.id != id or self.directory(id).exists():
                    raise errors.Invalid(f"cannot finish the removal in {directory}: there is another plugin {id}")
                write_atomically(path, msgspec.json.encode(replace(record, removing=True, enabled=False)))
                directory.rename(self.directory(id))
            except FileNotFoundError:
                continue  # the sweep removes it
            except (errors.MoorageError, OSError) as error:
                yield str(error)

    def save(self, record: Record) -> None:
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
        """Remove what is temporary, and directories of plugins without a record; what may be a user's is set aside.

        Raises: OSError for what stays.
        """
        sweep_temporary(self.temporary)
        sweep_directories(self.plugins, self.root / ASIDE, lambda name: name in known or not self.is_free(name))


Kind = TypeVar("Kind")


def _decode(raw: bytes, kind: type[Kind], path: Path) -> Kind:
    """The document, brought to the present version. Raises: Invalid with the place, Unsupported for a newer one."""
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
