"""A plugin for tests of the proxy: a process that serves all kinds on a unix socket. What it does depends on the call.

    python -m support.proxy_plugin SOCKET DIRECTORY

It appends each call to ``DIRECTORY/calls``, a JSON line each. The name of a volume says how its calls go: ``hang``,
``exit`` (the process exits at once), ``close`` (the connection is closed), ``text``, ``err`` (200 with Err), ``status``
(404), ``slow`` (1 s), ``parent`` (a path with ``..``). Volumes are directories below ``DIRECTORY/inside``, and those
that begin with ``fs`` a file system that is mounted there, unless there is a file ``DIRECTORY/no-mount``.
"""

import json
import os
import socketserver
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

_ENTRY = b"entry of the log\n" * 60


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"  # type: ignore[mutable-override]  # as http.server's own documentation has it

    def do_POST(self) -> None:
        if self.path == "/AuthZPlugin.AuthZReq":
            self.pass_through()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fields: dict[str, Any] = json.loads(body or b"{}")
        record = {"call": self.path, "body": body.decode(), "type": self.headers.get("Content-Type")}
        with open(self.server.directory / "calls", "a") as file:
            file.write(json.dumps(record) + "\n")
        name = str(fields.get("Name", ""))
        if self.path == "/LogDriver.ReadLogs":
            self.stream(int(self.headers.get("X-Count", "-1")))
        elif not self.misbehaves(name):
            self.answer(200, json.dumps(self.result(name, fields)).encode())

    def misbehaves(self, name: str) -> bool:
        if name == "slow":
            time.sleep(1)
        elif name == "hang":
            time.sleep(3600)
        elif name == "exit":
            os._exit(1)
        elif name == "close":
            self.close_connection = True
            return True
        elif name in ("text", "err", "status"):
            answers = {
                "text": (200, b"<html>no"),
                "err": (200, b'{"Err": "no space"}'),
                "status": (404, b'{"Err": "no"}'),
            }
            self.answer(*answers[name])
            return True
        return False

    def result(self, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        path = self.server.directory / "inside" / name
        if self.path == "/VolumeDriver.Mount":
            path.mkdir(exist_ok=True)
            if name.startswith("fs") and not (self.server.directory / "no-mount").exists():
                subprocess.run(["mount", "-t", "tmpfs", "vol", path], check=True)
                (path / "data").write_text(name)
            inside = f"{self.server.directory}/inside"
            return {"Mountpoint": f"{inside}/../etc" if name == "parent" else f"{inside}/{name}"}
        if self.path == "/VolumeDriver.Unmount" and name.startswith("fs"):
            subprocess.run(["umount", path], check=False)
        if self.path == "/VolumeDriver.Path":
            return {"Mountpoint": f"{self.server.directory}/inside/{name}"}
        if self.path == "/VolumeDriver.List":
            return {"Volumes": [{"Name": "a", "Mountpoint": f"{self.server.directory}/inside/a"}]}
        return {"Volume": {"Name": name}} if self.path == "/VolumeDriver.Get" else {}

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def pass_through(self) -> None:
        """Return what comes."""
        self.answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def stream(self, count: int) -> None:
        """Chunks of log entries; endless for -1, and a single one before a pause for 0."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = 0
        while sent == 0 or sent != count:
            self.wfile.write(f"{len(_ENTRY):x}\r\n".encode() + _ENTRY + b"\r\n")
            sent += 1
            if count == 0:
                time.sleep(3600)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 1024
    daemon_threads = True
    directory: Path

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def main(path: str, directory: str) -> None:
    Path(path).unlink(missing_ok=True)
    with open(Path(directory) / "calls", "a") as file:
        file.write(json.dumps({"call": "start", "body": "{}", "type": ""}) + "\n")
    with Server(path, Handler) as server:
        server.directory = Path(directory)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
