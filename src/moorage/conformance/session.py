"""A plugin's directory in an engine of its own, which exists as long as one command.

Not ``moorage run``: what is tested is also what a plugin remembers over a kill and a restart, and that is the
engine's work. The engine has its own containerd and directories; the machine's engine is not touched. What a killed
command has left, the next one removes: the state directory is locked while a command uses it.
"""

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from moorage import errors
from moorage.client import MoorageClient
from moorage.host.mounts import unmount_all_below

__all__ = ("temporary_engine",)

_STATE_BASE = Path("/run")
_PREFIX = "moorage-test-"
_PAUSE = 0.02  # seconds between two queries


class _TemporaryEngine:
    """An engine below two directories; the data directory is named by a link in the other."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.data = Path(os.readlink(state / "data")) if (state / "data").is_symlink() else state / "data"
        self.exec_root = state / "e"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> MoorageClient:
        return MoorageClient(f"unix://{self.exec_root / 'moorage.sock'}")

    def start(self, seconds: float) -> None:
        """Start it, and return when it answers. Raises: errors.Unavailable with the end of its log."""
        with (self.state / "log").open("ab") as log:
            self.process = self._command("serve", log)
        deadline = time.monotonic() + seconds
        while True:
            try:
                if not self.client.info().moorage.problem:
                    return
            except errors.MoorageError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise errors.Unavailable(f"cannot start an engine for the test: {self.log()}")
            time.sleep(_PAUSE)

    def log(self) -> str:
        """The end of its log, in one line."""
        try:
            return " / ".join((self.state / "log").read_text(errors="replace").splitlines()[-5:])
        except OSError:
            return "it has no log"

    def remove(self) -> None:
        """Stop everything and remove both directories. Raises: errors.Unavailable where something cannot be removed."""
        with (self.state / "log").open("ab") as log:
            self._command("down", log).wait()
        if self.process is not None:
            self.process.wait()
        try:
            unmount_all_below(self.data)
            unmount_all_below(self.state)
            shutil.rmtree(self.data, ignore_errors=True)
            shutil.rmtree(self.state)
        except OSError as error:
            raise errors.Unavailable(f"cannot remove {self.state}: {error}") from error

    def _command(self, verb: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MOORAGE_")}
        source = str(Path(__file__).resolve().parents[2])  # also where a package has its own directory of libraries
        location = ["--root", str(self.data), "--exec-root", str(self.exec_root)]
        command = [sys.executable, "-P", "-m", "moorage", verb, *location]
        return subprocess.Popen(  # a session of its own: Ctrl-C is for the command, which then stops the engine
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**inherited, "PYTHONPATH": source},
            cwd="/",
            start_new_session=True,
        )


@contextmanager
def temporary_engine(seconds: float) -> Iterator[MoorageClient]:
    """The client of an engine that exists as long as the block (blocking, in the main thread).

    Raises:
        errors.Denied: the user is not root
        errors.Unavailable: it does not start within ``seconds``, or cannot be removed
    """
    if os.geteuid() != 0:
        raise errors.Denied("cannot run a plugin: mounts and control groups need root; run this with sudo")
    for state in sorted(_STATE_BASE.glob(f"{_PREFIX}*")):
        with _locked(state) as is_locked:
            if is_locked:
                _TemporaryEngine(state).remove()
    base = Path(os.environ.get("TMPDIR") or "/var/tmp").absolute()
    state = _STATE_BASE / f"{_PREFIX}{secrets.token_hex(4)}"
    state.mkdir(mode=0o700)
    with _locked(state):
        data = base / state.name
        (state / "data").symlink_to(data)
        data.mkdir(mode=0o700)
        engine = _TemporaryEngine(state)
        before = signal.signal(signal.SIGTERM, _exit)
        try:
            engine.start(seconds)
            yield engine.client
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            engine.remove()
            signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)  # which removes the engine on the way


@contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Whether this process has the lock of a directory, which no other has then."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
