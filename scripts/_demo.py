"""The demo's steps: `moorage run` on examples/hello-volume, every call of a volume driver, and a check for leftovers.

Called by scripts/demo. Usage: _demo.py [MOORAGE], where MOORAGE is the command to run, .venv/bin/moorage by default.
"""

import hashlib
import http.client
import json
import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]
EXAMPLE = CHECKOUT / "examples" / "hello-volume"
VOLUME = "greetings"
TEXT = "written by the host, read by the plugin\n"

# Only against a hang, also on a machine that is emulated.
START_SECONDS = 300.0
CALL_SECONDS = 100.0
STOP_SECONDS = 150.0
SETTLE_SECONDS = 20.0  # the kernel takes a moment to end a process or to free a mount

MARK = secrets.token_hex(16)  # in the environment of all that we start

Event = dict[str, object]


class Failed(Exception):
    """A step did not do what it should; the text says which and how."""


# ---- what can be left behind


class Process(NamedTuple):
    pid: int
    started: str  # in ticks since boot: a pid alone may be another process's by now
    name: str


def living() -> dict[Process, tuple[int, bool]]:
    """Every process that has not ended, with its parent's pid and whether it carries our mark."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            is_marked = MARK.encode() in (entry / "environ").read_bytes()
        except OSError:
            continue  # ended in between
        state, parent, *others = rest.split()
        if state != "Z":
            found[Process(int(entry.name), others[17], name)] = int(parent), is_marked
    return found


def processes() -> set[Process]:
    """All that `moorage run` has started: the environment is inherited, except by the plugin, which has a parent."""
    alive = living()
    pids = {process.pid for process, (_, is_marked) in alive.items() if is_marked}
    while below := {process.pid for process, (parent, _) in alive.items() if parent in pids} - pids:
        pids |= below
    return {process for process in alive if process.pid in pids}


def plugin_pid() -> int:
    """The plugin's process, which is the shim's only child."""
    shims = {process.pid for process in processes() if process.name.startswith("containerd-shim")}
    children = [process.pid for process, (parent, _) in living().items() if parent in shims]
    must(len(children) == 1, f"there should be one process below the containerd-shim, but there are {children}")
    return children[0]


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def cgroups() -> set[Path]:
    """Every cgroup directory of the demo or below one, in each hierarchy of v1 and v2."""
    return {
        Path(above, name)
        for above, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if "moorage" in above + name
    }


def directories() -> set[Path]:
    """The demo's files in the usual directories for run-time, persistent and temporary files."""
    found = set()
    for base in {"/run", "/var/lib", "/var/tmp", "/tmp", os.environ.get("TMPDIR", "/tmp")}:
        for path_found in Path(base).glob("*moorage*"):
            found |= {path_found, *(path_found.iterdir() if path_found.is_dir() else ())}
    return found


def fingerprint(directory: Path) -> str:
    """A hash of all names, kinds, owners, permissions, times and contents below a directory."""
    digest = hashlib.sha256()
    for path in sorted([directory, *directory.rglob("*")]):
        is_link, info = path.is_symlink(), path.lstat()
        facts = (path.relative_to(directory), info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns)
        content = os.readlink(path).encode() if is_link else path.read_bytes() if path.is_file() else b""
        digest.update(repr((*map(str, facts), len(content))).encode() + content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Traces:
    """What can be seen of plugins on this machine at one moment."""

    processes: set[Process]
    mounts: list[str]
    cgroups: set[Path]
    directories: set[Path]
    example: str

    @classmethod
    def take(cls) -> "Traces":
        return cls(processes(), mounts(), cgroups(), directories(), fingerprint(EXAMPLE))


def settled(left: Callable[[], list[str]]) -> list[str]:
    """The leftovers after the kernel had its moment."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


# ---- the plugin, as `moorage run` shows it


class Run:
    """`moorage --json run` as a child process. `end` must be called, whatever happens."""

    def __init__(self, moorage: Path) -> None:
        self.events: queue.Queue[Event | None] = queue.Queue()
        self.output: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.complaints: list[str] = []
        self.child = subprocess.Popen(
            [moorage, "--json", "run", EXAMPLE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "MOORAGE_DEMO": MARK},
            text=True,
            start_new_session=True,  # the terminal's Ctrl-C comes to us alone, and we pass it on
        )
        threading.Thread(target=self._read_events, daemon=True).start()
        threading.Thread(target=self._read_complaints, daemon=True).start()

    def _read_events(self) -> None:
        for line in self.child.stdout or ():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                self.events.put({"event": "not JSON", "line": line})
            elif event.get("event") == "output":
                self.output.put(f"| {event.get('line')}")
            else:
                self.events.put(event)
        self.events.put(None)

    def _read_complaints(self) -> None:
        self.complaints.extend(line.rstrip() for line in self.child.stderr or ())

    def expect(self, kind: str, seconds: float) -> Event:
        """The next event, which must be of this kind."""
        try:
            event = self.events.get(timeout=seconds)
        except queue.Empty:
            raise Failed(f"`moorage run` did not say {kind!r} within {seconds:.0f} s{self.reason()}") from None
        self.show_output()
        if event is None:
            raise Failed(f"`moorage run` ended with status {self.child.wait()} before it said {kind!r}{self.reason()}")
        if event.get("event") != kind:
            raise Failed(f"`moorage run` said {event} where {kind!r} was expected{self.reason()}")
        return event

    def show_output(self) -> None:
        """Print what the plugin has said in the meantime."""
        while not self.output.empty():
            show("", self.output.get())

    def reason(self) -> str:
        return "".join(f"\n    {line}" for line in self.complaints[-10:])

    def end(self) -> None:
        """Stop the child if it still runs, in the end by force."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            if self.child.poll() is not None:
                return
            self.child.send_signal(number)
            try:
                self.child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                print(f"`moorage run` did not end within {STOP_SECONDS:.0f} s of {number.name}", file=sys.stderr)
        print("`moorage run` had to be killed: what it has started may still run", file=sys.stderr)


class Plugin(http.client.HTTPConnection):
    """A call to the plugin: HTTP over its unix socket, JSON in and out."""

    def __init__(self, run: Run, path: str) -> None:
        super().__init__("plugin", timeout=CALL_SECONDS)
        self.run = run
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(CALL_SECONDS)
        self.sock.connect(self.path)

    def call(self, step: str, method: str, **arguments: str) -> Event:
        sent = json.dumps(arguments)
        try:
            self.request("POST", f"/{method}", sent, {"Accept": "application/vnd.docker.plugins.v1.2+json"})
            response = self.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Failed(f"{method} {sent} was not answered: {error!r}") from error
        if response.status != 200 or not isinstance(answer, dict) or answer.get("Err"):
            raise Failed(f"{method} {sent} was answered with status {response.status}: {answer}")
        show(step, f"{method} {sent if arguments else ''}".rstrip(), f"-> {json.dumps(answer)}")
        self.run.show_output()
        return answer


# ---- the steps

_last = time.monotonic()


def show(step: str, *lines: str) -> None:
    """Print a step, how long it took since the last one, and what came of it."""
    global _last
    now = time.monotonic()
    taken = f"{now - _last:5.2f} s" if step else ""
    _last = now if step else _last
    for number, line in enumerate(lines):
        print(f"  {step if number == 0 else '':<10}{taken if number == 0 else '':<9}{line}", flush=True)


def must(true: bool, otherwise: str) -> None:
    if not true:
        raise Failed(otherwise)


def text_of(event: Event, key: str) -> str:
    value = event.get(key)
    if not isinstance(value, str) or not value:
        raise Failed(f"`moorage run` gave no {key}: {event}")
    return value


def use(run: Run, socket_path: str, root_in_plugin: Path, propagated: Path) -> None:
    """Every call of a volume driver, and a file that goes from the host to the plugin and back."""
    plugin = Plugin(run, socket_path)
    must(plugin.call("activate", "Plugin.Activate").get("Implements") == ["VolumeDriver"], "it is no volume driver")
    plugin.call("create", "VolumeDriver.Create", Name=VOLUME)

    point = plugin.call("mount", "VolumeDriver.Mount", Name=VOLUME, ID="demo").get("Mountpoint")
    inner = json.loads((EXAMPLE / "config.json").read_text())["propagatedMount"]
    must(isinstance(point, str) and Path(point).is_relative_to(inner), f"{point} is not below {inner}")
    on_host = propagated / Path(str(point)).relative_to(inner)
    points = [line.split()[4] for line in mounts()]  # Path.is_mount does not see a bind within one file system
    must(str(on_host) in points, f"the volume is not mounted on the host at {on_host}")
    show("", f"the host sees it mounted at {on_host}")

    (on_host / "hello.txt").write_text(TEXT)
    show("write", f"{len(TEXT)} bytes to hello.txt there, by the host")
    seen = (root_in_plugin / str(point).lstrip("/") / "hello.txt").read_text()
    must(seen == TEXT, f"in the plugin, {point}/hello.txt reads {seen!r}")
    show("read", f"in the plugin, {point}/hello.txt: {seen.strip()!r}")
    must((on_host / "hello.txt").read_text() == TEXT, "on the host, hello.txt reads differently")
    show("", "on the host: the same")

    volumes = plugin.call("list", "VolumeDriver.List").get("Volumes")
    must(isinstance(volumes, list) and [each["Name"] for each in volumes] == [VOLUME], f"{VOLUME} is not listed alone")
    plugin.call("unmount", "VolumeDriver.Unmount", Name=VOLUME, ID="demo")
    must(not on_host.exists(), f"{on_host} is still there")
    show("", "on the host the mount is gone")
    plugin.call("remove", "VolumeDriver.Remove", Name=VOLUME)
    must(plugin.call("list", "VolumeDriver.List").get("Volumes") == [], "there is still a volume")
    plugin.close()


def stop(run: Run) -> None:
    started_at = time.monotonic()
    run.child.send_signal(signal.SIGINT)
    exit_event = run.expect("exit", STOP_SECONDS)
    run.expect("gone", STOP_SECONDS)
    try:
        status = run.child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed(f"`moorage run` said that all is gone, but does not end{run.reason()}") from None
    must(status == 130, f"after SIGINT the exit status of `moorage run` must be 130, but it is {status}{run.reason()}")
    must(exit_event.get("code") == 0, f"after SIGTERM the plugin must end with 0, but it is {exit_event}")
    show(
        "stop",
        f"SIGINT: the plugin exited with 0 and `moorage run` with 130, after {time.monotonic() - started_at:.2f} s",
    )


def check_leftovers(before: Traces, during: Traces, id_: str, own: list[Path]) -> None:
    """Fail with the names of the leftovers. `during` shows that each check would have found something."""

    def none_left(step: str, there: int, what: str, left: Callable[[], list[str]]) -> None:
        must(there > 0, f"of {what} nothing was found while the plugin ran, so nothing can be said about them now")
        found = settled(left)
        hint = " (or another process ran something meanwhile: then run the demo again)"
        must(not found, f"left behind of {what}{hint}:" + "".join(f"\n    {each}" for each in found))
        show(step, f"{there} {what} while it ran, none of them left")

    def left_processes() -> list[str]:
        return [f"{each.pid} {each.name}" for each in processes() | (during.processes & living().keys())]

    def left_mounts() -> list[str]:
        now = mounts()
        return [f"+ {line}" for line in now if line not in before.mounts] + [
            f"- {line}" for line in before.mounts if line not in now
        ]

    def left_cgroups() -> list[str]:
        """The demo's own, and what was created for it; not those of other plugins started in the meantime."""
        new = cgroups() - before.cgroups
        return [str(each) for each in new if id_ in str(each) or is_empty(each)]

    def is_empty(group: Path) -> bool:
        try:
            return not any(path.is_dir() for path in group.iterdir())
        except FileNotFoundError:
            return False  # another's, gone since it was listed

    def left_files() -> list[str]:
        return [str(each) for each in {*(directories() - before.directories), *filter(os.path.lexists, own)}]

    none_left("processes", len(during.processes), "processes", left_processes)
    none_left("mounts", len(set(during.mounts) - set(before.mounts)), "mounts", left_mounts)
    none_left("cgroups", sum(id_ in str(each) for each in during.cgroups), "cgroups", left_cgroups)
    none_left("files", len(during.directories - before.directories), "temporary directories", left_files)
    must(fingerprint(EXAMPLE) == before.example, f"{EXAMPLE} has changed")
    show("", "the hash of examples/hello-volume is as before")


def demonstrate(moorage: Path) -> None:
    before = Traces.take()
    must(not before.processes, "a process carries our mark before anything is started")
    run = Run(moorage)
    try:
        run.expect("starting", START_SECONDS)
        started = run.expect("started", START_SECONDS)
        ready = run.expect("ready", START_SECONDS)
        id_, socket_path, pid = text_of(started, "id"), text_of(started, "socket"), plugin_pid()
        own = [Path(text_of(started, key)) for key in ("socket", "root", "propagated_mount")]
        show("start", f"the plugin is process {pid} on {socket_path}")
        show("", f"ready after {ready.get('seconds')} s, implements {ready.get('implements')}")
        during = Traces.take()
        show("", f"running: {', '.join(sorted(each.name for each in during.processes))}")
        use(run, socket_path, Path(f"/proc/{pid}/root"), own[2])
        stop(run)
    finally:
        run.end()
    check_leftovers(before, during, id_, own)


def interrupted(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> int:
    started_at = float(os.environ.get("DEMO_STARTED_AT", str(time.time())).replace(",", "."))
    set_up = time.time() - started_at
    moorage = Path(sys.argv[1]) if len(sys.argv) > 1 else CHECKOUT / ".venv/bin/moorage"
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    print("Moorage runs examples/hello-volume, a volume driver, on containerd and without a Docker daemon\n")
    try:
        must(os.geteuid() == 0, "containers need root: run scripts/demo as root")
        must(os.access(moorage, os.X_OK), f"{moorage} is missing: run scripts/setup")
        demonstrate(moorage)
    except (Failed, OSError) as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the plugin is stopped.", file=sys.stderr)
        return 130
    print(f"\nEvery step worked and nothing is left: {time.time() - started_at:.2f} s, {set_up:.2f} s of it set-up.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
