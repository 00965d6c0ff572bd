"""``moorage apply --watch``: apply the file again when it changes, and from time to time."""

import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import anyio

from moorage import errors
from moorage.cli.apply.file import ROLLED_BACK, ApplyOptions, DesiredFile, read_source
from moorage.cli.terminal import complain
from moorage.client import MoorageClient
from moorage.host.inotify import DirectoryWatch, watch_directory

__all__ = ("next_apply", "watch_file")

_EVERY = 300.0  # seconds between two applies of the same file
_LONGEST = 3600.0  # seconds, after many roll-backs: each one interrupts the plugin
_FIRST_RETRY = 5.0  # seconds, where the engine or a registry did not answer
_CHECK = 10.0  # seconds between two checks whether all is as desired and healthy


def next_apply(status: int, failures: int) -> float:
    """Seconds until the same file is applied again, after so many failures of this kind in a row. Pure."""
    if status == ROLLED_BACK:
        return float(min(_EVERY * 2 ** min(failures - 1, 10), _LONGEST))
    if status:
        return float(min(_FIRST_RETRY * 2 ** min(failures - 1, 10), _EVERY))
    return _EVERY


def watch_file(client: MoorageClient, source: str, options: ApplyOptions, ready_file: Path | None) -> NoReturn:
    """Apply the file until SIGTERM or SIGINT, which exit with status 0.

    ``ready_file`` exists while all plugins were as desired and healthy at the last check.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        with watch_directory(Path(source).absolute().parent) as directory:
            _Watch(client, source, options, ready_file).run(directory)
    finally:
        _set_ready(ready_file, is_ready=False)


class _Watch:
    def __init__(self, client: MoorageClient, source: str, options: ApplyOptions, ready_file: Path | None) -> None:
        self._client, self._source, self._options, self._ready_file = client, source, options, ready_file
        self._applied = b""
        self._failures = (0, 0)
        """Status of the last apply of the same file, and how often in a row."""
        self._due_at = 0.0

    def run(self, directory: DirectoryWatch) -> NoReturn:
        while True:
            is_ready = False
            try:
                is_ready = self._apply_if_due() == 0
            except errors.MoorageError as error:
                complain(str(error))
            _set_ready(self._ready_file, is_ready=is_ready)
            anyio.run(directory.wait, max(0.1, min(_CHECK, self._due_at - time.monotonic())))

    def _apply_if_due(self) -> int:
        """Apply where the file has changed, or its time has come; whether all is as desired and healthy."""
        try:
            data = read_source(self._source)
        except errors.MoorageError:
            self._note(1)
            raise
        if data != self._applied:
            self._applied, self._failures, self._due_at = data, (0, 0), 0.0
        if time.monotonic() >= self._due_at:
            status = 1
            try:
                status = DesiredFile.parse(self._source, data).apply(self._client, self._options)
            finally:
                self._note(status)
            if status:
                return status
        return DesiredFile.parse(self._source, data).check(self._client, self._options, prints=False)

    def _note(self, status: int) -> None:
        last, count = self._failures
        self._failures = (status, count + 1 if status == last else 1)
        self._due_at = time.monotonic() + next_apply(*self._failures)


def _set_ready(path: Path | None, *, is_ready: bool) -> None:
    if path is None:
        return
    if not is_ready:
        with suppress(FileNotFoundError):
            path.unlink()
    elif not path.exists():
        path.write_text("ready\n")
