"""Starts an engine's containerd before the engine itself is imported: both take a third of a second, side by side.

It is the start that the engine makes anyway, under the same locks and after the same checks, where those need nothing
else: from the second start on, and where containerd does not run. Whatever prevents it, the engine finds and reports.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.stop_signals import signals_delayed
from moorage.containerd.supervisor import PrivateContainerd
from moorage.engine.store import Store
from moorage.host.directory_tree import remove_tree_now
from moorage.host.files import try_lock
from moorage.host.process_environment import set_process_defaults
from moorage.location import Location
from moorage.runtime_directory import RuntimeDirectory
from moorage.systemd.scopes import containerd_scope

__all__ = ("containerd_started_early",)

_CONTAINERD = "containerd"

log = logging.getLogger(__name__)


@contextmanager
def containerd_started_early(location: Location, socket: Path | None, containerd: str | None) -> Iterator[None]:
    """A block that imports and runs an engine, beside the start of its containerd.

    ``socket`` and ``containerd`` are the options of the engine. Signals to stop wait until the engine takes them. What
    was started and the engine has not used when the block ends, because it was refused, is removed again.
    """
    with signals_delayed(), ExitStack() as undo:
        _start(location, socket, containerd, undo)
        yield


def _start(location: Location, socket: Path | None, containerd: str | None, undo: ExitStack) -> None:
    store, runtime = Store(location.root), RuntimeDirectory(location.exec_root)
    identity = store.find_identity() if os.geteuid() == 0 else None
    if identity is None or not identity.is_claimed or identity.containerd != "private":
        return
    if containerd not in (None, "private") or Path(identity.exec_root) != location.exec_root:
        return
    set_process_defaults(warns=False)
    try:
        with ExitStack() as locks:
            locks.callback(os.close, store.lock(None))
            was_empty = not runtime.has_leftovers()
            api_socket = socket or location.exec_root / "moorage.sock"
            locks.callback(os.close, runtime.claim(identity.engine_id, store.root, api_socket))
            state, scope = location.exec_root / _CONTAINERD, containerd_scope(store.root)
            private = PrivateContainerd(store.root / _CONTAINERD, state, scope=scope)
            undo.callback(partial(_undo, private, runtime, was_empty=was_empty))
            anyio.run(private.start)
    except (errors.MoorageError, OSError) as error:
        log.debug("containerd is not started early: %s", error)


def _undo(private: PrivateContainerd, runtime: RuntimeDirectory, *, was_empty: bool) -> None:
    """Stop what was started, unless it is in use; remove the run-time directory, if there was nothing in it before."""
    try:
        if not anyio.run(private.stop_unused) or not was_empty:
            return
        descriptor = try_lock(runtime.path / "lock")
        if descriptor is not None:  # else it is another engine's by now
            try:
                remove_tree_now(private.state)
                runtime.clear()
            finally:
                os.close(descriptor)
    except (errors.MoorageError, OSError) as error:
        log.warning("cannot remove all that was made in %s: %s", runtime.path, error)
