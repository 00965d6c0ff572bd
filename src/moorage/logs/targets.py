"""Copies of a plugin's lines for the journal or syslog, beside the files, as the file ``target`` of its log names it.

The file has three fields, separated by NUL: journald or syslog, the plugin's name, its id. It is checked once a second,
so that a change applies to a plugin that runs. Lines that the receiver does not take at once are left out, because
the keeper waits for nothing: the files have all.

This runs in the log keeper, so it imports little.
"""

import os
import socket
import time
from collections.abc import Iterable

__all__ = ("LineTarget", "write_target")

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
_NAME = "target"
_CHECK_SECONDS = 1.0
_PRIORITIES = {b"stdout": 6, b"stderr": 3}
"""Informational and error, as docker's and podman's drivers have it."""
_DAEMON = 3 << 3
"""The facility of syslog. Source: RFC 3164, section 4.1.1."""


def write_target(directory: str, kind: str, name: str, id: str) -> None:
    """Send the lines of the log in this directory to journald or syslog; to its files only for any other kind."""
    path = os.path.join(directory, _NAME)
    if kind not in ("journald", "syslog"):
        if os.path.lexists(path):
            os.unlink(path)
        return
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write("\0".join((kind, name, id)))
    os.replace(f"{path}.new", path)


class LineTarget:
    """Sends the lines of one log."""

    def __init__(self, directory: str) -> None:
        """Nothing is opened yet."""
        self._path = os.path.join(directory, _NAME)
        self._checked_at = 0.0
        self._mark: tuple[int, int] | None = None
        self._kind, self._name, self._id = "", b"", b""
        self._socket: socket.socket | None = None

    def send(self, records: Iterable[bytes | memoryview]) -> None:
        """Send these records, which together are whole. Never fails, never waits."""
        now = time.monotonic()
        if now - self._checked_at >= _CHECK_SECONDS:
            self._checked_at = now
            self._check()
        if not self._kind:
            return
        for record in b"".join(records).split(b"\n"):
            _, _, rest = record.partition(b" ")
            stream, _, text = rest.partition(b" ")
            if rest:
                self._send(stream, text)

    def close(self) -> None:
        """Close the socket; the next line opens it again. May be repeated."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _check(self) -> None:
        try:
            status = os.stat(self._path)
            mark = (status.st_ino, status.st_mtime_ns)
            if mark == self._mark:
                return
            with open(self._path, "rb") as file:
                kind, self._name, self._id = file.read(4096).split(b"\0")
            self._kind, self._mark = kind.decode(), mark
        except (OSError, ValueError):
            self._kind, self._mark = "", None

    def _send(self, stream: bytes, text: bytes) -> None:
        priority = _PRIORITIES.get(stream.rstrip(b"+"), 6)
        if self._kind == "journald":
            packet, path = self._journal_packet(stream, text, priority), JOURNAL
        else:
            at = time.strftime("%b %e %H:%M:%S").encode()
            packet, path = b"<%d>%b %b: %b" % (_DAEMON | priority, at, self._name, text), SYSLOG
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.sendto(packet, path)
        except OSError:
            pass

    def _journal_packet(self, stream: bytes, text: bytes, priority: int) -> bytes:
        """Source: systemd, docs/JOURNAL_NATIVE_PROTOCOL.md."""
        fields = [
            (b"MESSAGE", text),
            (b"PRIORITY", b"%d" % priority),
            (b"SYSLOG_IDENTIFIER", self._name),
            (b"MOORAGE_PLUGIN", self._name),
            (b"MOORAGE_PLUGIN_ID", self._id),
            (b"MOORAGE_STREAM", stream.rstrip(b"+")),
        ]
        if stream.endswith(b"+"):
            fields.append((b"MOORAGE_PARTIAL", b"true"))
        return b"".join(b"%b=%b\n" % each for each in fields)
