"""A volume driver for Docker's plugin protocol, whole and small: directories, shown by bind mounts.

Everything lies below the propagated mount, the one place that the host sees and that outlives the plugin:

    store/NAME/volume.json      what is known of a volume
    store/NAME/data/            what its users have written
    mounted/NAME                where data/ is mounted while the volume is used

A volume is a directory that appears and goes by one rename(2), so a kill at any moment leaves it whole or leaves
nothing. Who uses a volume is kept in memory only, as Docker keeps it: mounts end with the plugin.
"""

import signal
import sys
from types import FrameType


def stop(_number: int, _frame: FrameType | None) -> None:
    """End the main thread, once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(0)


# Before the slow imports: for process 1 there is no default action, so an early SIGTERM would be lost.
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

import ctypes  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import shutil  # noqa: E402
import socketserver  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from http.server import BaseHTTPRequestHandler  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import ClassVar, TextIO  # noqa: E402

Message = dict[str, object]

SOCKET = Path(os.environ.get("HELLO_SOCKET", "/run/docker/plugins/hello.sock"))
ROOT = Path(os.environ.get("HELLO_ROOT", "/mnt/volumes"))
DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")  # never begins with a dot: those names are the driver's own
BODY_LIMIT_BYTES = 1 << 20
IDLE_SECONDS = 60

MS_BIND = 4096  # linux/mount.h
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
LIBC = ctypes.CDLL("libc.so.6", use_errno=True)


class Refused(Exception):
    """A call that cannot be done, in words for its caller."""


def log(text: str, stream: TextIO = sys.stdout) -> None:
    try:
        stream.write(text + "\n")  # in one piece, because threads write at the same time
        stream.flush()
    except OSError:
        pass  # nobody reads any more, which is no reason to fail a call


# ---- the kernel


def bind(source: Path, target: Path) -> None:
    """Show source at target, here and (because the propagated mount is shared) on the host."""
    if LIBC.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(MS_BIND), None) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def unbind(target: Path, flags: int = 0) -> None:
    """Undo one `bind`."""
    if LIBC.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def unbind_all(target: Path) -> None:
    """Undo every mount on target, even those in use, and remove the directory."""
    try:
        while True:
            unbind(target, MNT_DETACH)
    except OSError:
        pass  # EINVAL: no mount is left
    try:
        target.rmdir()
    except OSError as error:
        log(f"cannot remove {target}: {error}", sys.stderr)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---- the driver


def name_in(call: Message) -> str:
    name = call.get("Name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise Refused(f"{name!r} is not a volume's name: 1 to 128 of a-z A-Z 0-9 _ . - with a letter or digit first")
    return name


def user_in(call: Message) -> str:
    user = call.get("ID")
    if not isinstance(user, str) or not user:
        raise Refused(f"{user!r} is not the ID of a volume's user")
    return user


def mode_in(options: object) -> int:
    """The only option: `mode`, the permissions of the volume's directory in octal."""
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise Refused(f"the options must be an object, not {options!r}")
    if unknown := sorted(set(options) - {"mode"}):
        raise Refused(f"unknown option {', '.join(map(repr, unknown))}: there is only mode")
    mode = options.get("mode", "0755")
    if not isinstance(mode, str) or not re.fullmatch("[0-7]{3,4}", mode):
        raise Refused(f"{mode!r} is not a mode: three or four octal digits, as in 0750")
    return int(mode, 8)


class Driver:
    """The volumes below one directory. Each public method is one call of the protocol; all of them may be repeated."""

    def __init__(self, root: Path) -> None:
        self.store = root / "store"
        self.mounted = root / "mounted"
        self.users: dict[str, set[str]] = {}
        self.lock = threading.Lock()
        self.stopping = False

    def open(self) -> None:
        """Begin, after whatever end: clear the mounts and the half-made or half-removed volumes of a killed plugin."""
        self.store.mkdir(parents=True, exist_ok=True)
        self.mounted.mkdir(exist_ok=True)
        for left in self.mounted.iterdir():
            unbind_all(left)
        for left in self.store.glob(".*"):
            shutil.rmtree(left)

    def close(self) -> None:
        """End all mounts, whoever uses them, and refuse what comes later."""
        with self.lock:
            self.stopping = True
            for name in self.users:
                unbind_all(self.mounted / name)
            self.users.clear()

    def create(self, call: Message) -> Message:
        name, mode = name_in(call), mode_in(call.get("Opts"))
        with self.lock:
            if (self.store / name).exists():
                if self._known(name)["mode"] != f"{mode:04o}":
                    raise Refused(f"volume {name} is there already, with other options")
                return {}
            new = self.store / f".new-{name}"
            shutil.rmtree(new, ignore_errors=True)  # of a Create that failed
            (new / "data").mkdir(parents=True)
            (new / "data").chmod(mode)  # mkdir(2) would apply the umask
            created_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            (new / "volume.json").write_text(json.dumps({"mode": f"{mode:04o}", "created_at": created_at}) + "\n")
            sync(new / "volume.json")
            sync(new)
            new.rename(self.store / name)
            sync(self.store)
        log(f"created volume {name}")
        return {}

    def remove(self, call: Message) -> Message:
        name = name_in(call)
        gone = self.store / f".gone-{name}-{time.monotonic_ns()}"
        with self.lock:
            self._known(name)
            if users := self.users.get(name):
                raise Refused(f"volume {name} is in use by {', '.join(sorted(users))}")
            (self.store / name).rename(gone)
            sync(self.store)
        shutil.rmtree(gone)  # may take long, so outside the lock
        log(f"removed volume {name}")
        return {}

    def mount(self, call: Message) -> Message:
        name, user = name_in(call), user_in(call)
        point = self.mounted / name
        with self.lock:
            self._known(name)
            if name not in self.users:
                if self.stopping:
                    raise Refused(f"cannot mount volume {name}: the plugin is stopping")
                point.mkdir(exist_ok=True)
                try:
                    bind(self.store / name / "data", point)
                except OSError as error:
                    point.rmdir()
                    raise Refused(f"cannot mount volume {name}: {error.strerror}") from error
                self.users[name] = set()
                log(f"mounted volume {name}")
            self.users[name].add(user)
        return {"Mountpoint": str(point)}

    def unmount(self, call: Message) -> Message:
        name, user = name_in(call), user_in(call)
        point = self.mounted / name
        with self.lock:
            self._known(name)
            # An unknown user is no error: he came before the plugin was started again, and his mount ended with it.
            if self.users.get(name) == {user}:
                try:
                    unbind(point)
                except OSError as error:
                    raise Refused(f"cannot unmount volume {name}: {error.strerror}") from error
                del self.users[name]
                point.rmdir()
                log(f"unmounted volume {name}")
            elif name in self.users:
                self.users[name].discard(user)
        return {}

    def path(self, call: Message) -> Message:
        name = name_in(call)
        with self.lock:
            self._known(name)
            return {"Mountpoint": self._mountpoint(name)}

    def get(self, call: Message) -> Message:
        name = name_in(call)
        with self.lock:
            return {"Volume": self._described(name)}

    def list(self, _call: Message) -> Message:
        with self.lock:
            names = sorted(known.parent.name for known in self.store.glob("[!.]*/volume.json"))
            return {"Volumes": [self._described(name) for name in names]}

    def capabilities(self, _call: Message) -> Message:
        return {"Capabilities": {"Scope": "local"}}

    def activate(self, _call: Message) -> Message:
        return {"Implements": ["VolumeDriver"]}

    def _known(self, name: str) -> dict[str, str]:
        try:
            known: dict[str, str] = json.loads((self.store / name / "volume.json").read_bytes())
        except FileNotFoundError:
            raise Refused(f"no such volume: {name}") from None
        return known

    def _mountpoint(self, name: str) -> str:
        return str(self.mounted / name) if name in self.users else ""

    def _described(self, name: str) -> Message:
        known = self._known(name)
        status = {"Mode": known["mode"], "Users": sorted(self.users.get(name, ()))}
        return {"Name": name, "Mountpoint": self._mountpoint(name), "CreatedAt": known["created_at"], "Status": status}


# ---- the protocol: HTTP on a unix socket, POST /Kind.Method, JSON in and out, {"Err": "why"} when it failed


class Handler(BaseHTTPRequestHandler):
    """One connection with any number of calls."""

    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float | None] = IDLE_SECONDS
    server: "Server"  # type: ignore[mutable-override]  # nothing else makes a Handler

    def do_POST(self) -> None:
        status, answer = self.called()
        if DEBUG or "Err" in answer:
            log(f"{self.path} answers {status} {json.dumps(answer)}", sys.stderr if "Err" in answer else sys.stdout)
        self.reply(status, answer)

    def called(self) -> tuple[int, Message]:
        """Do one call: the HTTP status and the body of its answer."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_LIMIT_BYTES:
            self.close_connection = True  # the body stays unread, so the next request cannot be found
            return 400, {"Err": f"a call needs a Content-Length of 0 to {BODY_LIMIT_BYTES}"}
        body = self.rfile.read(int(length))
        method = self.server.methods.get(self.path)
        if method is None:
            return 404, {"Err": f"unknown method {self.path}"}
        try:
            call = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            return 400, {"Err": f"the body is not JSON: {error}"}
        if not isinstance(call, dict):
            return 400, {"Err": "the body is not a JSON object"}
        if DEBUG:
            log(f"{self.path} {json.dumps(call)}")
        try:
            return 200, method(call)
        except Refused as refused:
            return 500, {"Err": str(refused)}
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller waits for an answer
            return 500, {"Err": f"{type(error).__name__}: {error}"}

    def reply(self, status: int, answer: Message) -> None:
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.docker.plugins.v1.2+json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself finds wrong (a GET, no HTTP at all), in the protocol's form instead of HTML."""
        self.close_connection = True
        self.reply(code, {"Err": message or explain or f"HTTP status {code}"})

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: `do_POST` says what is worth saying."""


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread for each connection, so that an idle one holds up nobody."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, driver: Driver) -> None:
        path.unlink(missing_ok=True)  # of a killed plugin: bind(2) would refuse
        super().__init__(str(path), Handler)
        self.methods: dict[str, Callable[[Message], Message]] = {
            "/Plugin.Activate": driver.activate,
            "/VolumeDriver.Capabilities": driver.capabilities,
            "/VolumeDriver.Create": driver.create,
            "/VolumeDriver.Get": driver.get,
            "/VolumeDriver.List": driver.list,
            "/VolumeDriver.Mount": driver.mount,
            "/VolumeDriver.Path": driver.path,
            "/VolumeDriver.Remove": driver.remove,
            "/VolumeDriver.Unmount": driver.unmount,
        }

    def handle_error(self, request: object, client_address: object) -> None:
        log(f"a connection ended early: {sys.exc_info()[1]}", sys.stderr)


def main() -> None:
    driver = Driver(ROOT)
    try:
        driver.open()
        server = Server(SOCKET, driver)
        log(f"listening on {SOCKET}")
        server.serve_forever()
    except SystemExit:  # from `stop`
        driver.close()
        SOCKET.unlink(missing_ok=True)
        log("stopped")
        os._exit(0)  # at once: threads that are still answering could make an orderly end crash


if __name__ == "__main__":
    main()
