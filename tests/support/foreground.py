"""`moorage run` as a child, on a machine within this one: with mounts, /run and /var/tmp of its own, so that whatever
it leaves is seen, no other runs are touched, and commands and devices can be hidden from it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from support import leftovers
from support.conditions import TIMEOUT_SECONDS
from support.limits import limit

SOURCE = Path(__file__).resolve().parents[2] / "src"
SOCKET = "/run/docker/plugins/it.sock"
_POLL_SECONDS = 0.005

LISTEN = f"""
import os, signal, socket, sys, time
signal.signal(15, lambda *_: os._exit(7))  # the first process of a container ignores it by default
s = socket.socket(socket.AF_UNIX)
s.bind({SOCKET!r})
s.listen()
"""
"""Beginning of a plugin that accepts connections and never answers."""

EARLY = 1
"""Exit status of `moorage run` for a plugin that exits with 0 and has never listened, if nothing else is wrong."""

FOREVER = "time.sleep(10**6)\n"
IGNORE_TERM = "signal.signal(15, signal.SIG_IGN)\n"

ANSWER = (
    LISTEN
    + """
body = b'{"Implements": ["VolumeDriver", "x"]}'
while True:
    c, _ = s.accept()
    if c.recv(65536):
        c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n%s" % (len(body), body))
    c.close()
"""
)
"""A plugin that answers every call with what it implements. It ends by SIGTERM with 7."""


def wait_until(condition: Callable[[], object], what: str, within: float = TIMEOUT_SECONDS) -> None:
    """Return as soon as the condition is true. Raises: AssertionError that says what did not come."""
    began, pause = time.monotonic(), _POLL_SECONDS
    while not condition():
        waited = time.monotonic() - began
        assert waited < within, f"did not come within {within:g} s: {what}"
        time.sleep(pause)
        # a check takes processor time from what it waits for
        pause = min(1.5 * pause, max(5 * _POLL_SECONDS, waited / 20))


def make_plugin(directory: Path, entrypoint: str | Sequence[str], **config: Any) -> Path:
    """A plugin whose root shows this machine's /usr; the entrypoint is a Python program, or a list as in the config."""
    root = directory / "rootfs"
    (root / "usr").mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    python = ["/usr/bin/python3", "-I", "-S", "-c"]
    made = {
        "interface": {"types": ["test/1.0"], "socket": SOCKET.rpartition("/")[2]},
        "entrypoint": [*python, entrypoint] if isinstance(entrypoint, str) else list(entrypoint),
        "network": {"type": "none"},
        **config,
    }
    usr = {"name": "usr", "type": "bind", "source": "/usr", "destination": "/usr", "options": ["rbind", "ro"]}
    made["mounts"] = [usr, *config.get("mounts", ())]
    (directory / "config.json").write_text(json.dumps(made))
    return directory


class Machine:
    """A mount namespace, which a sleeping process keeps open, with an empty /run and /var/tmp.

    At the end of its block nothing that ran on it may remain.
    """

    def __init__(self, prepare: str = "") -> None:
        mounts = "mount -t tmpfs -o mode=755 run /run && mount -t tmpfs -o mode=1777 tmp /var/tmp"
        clean = "rm -rf /run/mount"  # of mount(8)
        text = "\n".join(["set -e", mounts, prepare, clean, "cd /", "echo ready", "exec sleep 1000000"])
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", text], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self.runs: list[Run] = []
        self.ids: set[str] = set()
        self._mounts = self.mounts()

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs these words on the machine."""
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *map(str, words)]

    def do(self, script: str) -> None:
        """Run a shell script on the machine, which must work."""
        subprocess.run(self.command("sh", "-ec", script), check=True)

    def hide(self, name: str) -> None:
        """Let there be no command of this name."""
        directories = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
        found = {os.path.realpath(f"{workspace}/{name}") for workspace in [*directories, *os.get_exec_path()]}
        for path in filter(os.path.exists, found):
            self.do(f"touch /run/no; chmod 0 /run/no; mount --bind /run/no {path}; rm -rf /run/no /run/mount")
            self._mounts.append(path)

    def inside(self, path: str | Path) -> Path:
        """A path of the machine, as we can reach it."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def mounts(self) -> list[str]:
        """The machine's mount points."""
        return [line.split()[4] for line in Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()]

    def start(
        self, *words: str | Path, wrapper: Sequence[str] = (), before: Sequence[str] = (), **options: Any
    ) -> "Run":
        """Start `moorage --json run` with these words; ``before``: options of the program itself."""
        run = Run(self, [*before, "--json", "run", *map(str, words)], wrapper=wrapper, **options)
        self.runs.append(run)
        return run

    def moorage(
        self, *words: str | Path, wrapper: Sequence[str] = (), env: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run any `moorage` command until it exits."""
        command = self.command(*wrapper, sys.executable, "-m", "moorage", *words)
        pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "surrogateescape"}
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command, env=environment(env), timeout=limit(60), check=False, **{**pipes, **options}
        )
        return done

    def note(self) -> None:
        """Remember the ids of the plugins that run, or ran, in what lies in /run now."""
        for state in self.inside("/run").glob("moorage-run-*"):
            if (state / "id").is_symlink():
                self.ids.add(os.readlink(state / "id"))

    def processes(self, name: str = "") -> list[int]:
        """What runs on the machine besides its holder, plugins included, by the beginning of their names."""
        own_namespace = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        found = []
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            try:
                is_here = os.readlink(f"/proc/{pid}/ns/mnt") == own_namespace
                comm = Path(f"/proc/{pid}/comm").read_text()
            except OSError:
                continue
            if is_here and pid != self._holder.pid and comm.startswith(name) and leftovers.is_alive(pid):
                found.append(pid)
        return found if name else sorted({*found, *self.plugins()})

    def plugins(self) -> list[int]:
        """The processes in the control groups of plugins that ran here."""
        return [pid for id in self.ids for pid in leftovers.processes_in(id)]

    def left(self) -> list[str]:
        """What exists on the machine that did not exist in the beginning."""
        self.ids |= {run.id for run in self.runs if run.id}
        names = [self.inside("/run"), self.inside("/var/tmp")]
        return [
            *(f"process {pid} {leftovers.command_line(pid)}" for pid in self.processes()),
            *(f"mount {point}" for point in self.mounts() if point not in self._mounts),
            *(f"file {path}" for path in leftovers.files_below(*names)),
            *(f"cgroup {path}" for id in self.ids for path in leftovers.plugin_groups(id)),
        ]

    def assert_nothing_left(self) -> None:
        """Fail with the names of leftovers, at once: `moorage run` waits for everything to stop."""
        found = self.left()
        assert not found, f"left behind: {found}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.assert_nothing_left()
        finally:
            self.close()

    def close(self) -> None:
        """End everything on the machine, and with it the machine."""
        self.note()
        for pid in [*self.processes(), *self.plugins()]:
            for number in (signal.SIGKILL, signal.SIGCONT):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        for run in self.runs:
            run.end()
        wait_until(lambda: not self.processes(), "the end of all processes")
        for id in self.ids:
            for directory in leftovers.plugin_groups(id):
                directory.rmdir()
        self._holder.kill()
        self._holder.wait()
        if self._holder.stdout is not None:
            self._holder.stdout.close()


class Run:
    """One `moorage run`; its events are read as they come."""

    def __init__(
        self,
        machine: Machine,
        words: list[str],
        *,
        wrapper: Sequence[str],
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.machine = machine
        self.events: list[dict[str, Any]] = []
        self.stderr = ""
        self.child = subprocess.Popen(
            machine.command(*wrapper, sys.executable, "-m", "moorage", *words),
            env=environment(env),
            text=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "errors": "surrogateescape",
                **options,
            },
        )
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_events, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        for line in self.child.stdout or ():
            self.events.append(json.loads(line))

    def _read_errors(self) -> None:
        for line in self.child.stderr or ():
            self.stderr += line

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The events of this kind, so far."""
        return [event for event in self.events if event["event"] == kind]

    def until(self, kind: str) -> dict[str, Any]:
        """The first event of this kind, waited for."""
        what = f"event {kind!r}"
        wait_until(lambda: self.all(kind) or self.child.poll() is not None, what)
        if not self.all(kind):
            self.end()
        assert self.all(kind), f"{what} did not come: {self.events} {self.stderr}"
        return self.all(kind)[0]

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and wait for the end; the exit status."""
        if number is not None:
            self.child.send_signal(number)
        status = self.child.wait(limit(60))
        for reader in self._readers:
            reader.join(TIMEOUT_SECONDS)
        for stream in (self.child.stdout, self.child.stderr):
            if stream is not None:
                stream.close()
        return status

    @property
    def id(self) -> str:
        """The plugin's id, once it is started."""
        return str(self.all("started")[0]["id"]) if self.all("started") else ""

    @property
    def lines(self) -> list[str]:
        """The plugin's output."""
        return [event["line"] for event in self.all("output")]

    @property
    def exit(self) -> dict[str, Any]:
        """The event of the plugin's exit, without its kind."""
        (event,) = self.all("exit")
        return {key: value for key, value in event.items() if key != "event"}

    def socket(self) -> Path:
        """The plugin's socket, as we can reach it."""
        return self.machine.inside(self.until("started")["socket"])

    def accepts(self) -> bool:
        """Whether the plugin takes a connection."""
        return accepts(self.socket())


def accepts(path: Path) -> bool:
    """Whether a process takes connections on a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        # through a descriptor: the path of a unix socket ends at 107 bytes
        directory = os.open(path.parent, os.O_PATH)
        try:
            return client.connect_ex(f"/proc/self/fd/{directory}/{path.name}") == 0
        finally:
            os.close(directory)


def containerd_has_loaded(state: Path) -> bool:
    """Whether a containerd with this state directory serves all calls, by the socket that it opens last.

    One from 1.7 on that still loads takes a shim without a running task for dead, and its exit is lost.
    """
    return accepts(state / "c.sock.ttrpc")


def environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """The test's, with Moorage's source in the path; a value of "" takes a variable out."""
    made = {**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": "", **(more or {})}
    return {name: value for name, value in made.items() if value}


def fingerprint(directory: Path) -> list[tuple[object, ...]]:
    """Names, kinds, owners, permissions, times and contents below a directory."""
    found: list[tuple[object, ...]] = []
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found.append((str(path), status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content))
    return found
