"""Plugins with the wire behaviour of docker/go-plugins-helpers and Go's net/http, for the conformance suite.

A stand-in, because no Go is installed for the tests. What is Go's, from sdk/handler.go and the helpers of each kind:

- activation is a line of text with the content type of protocol 1.1;
- a body is decoded only where a call has arguments; one that is not JSON, or empty, is answered by http.Error: status
  400, text/plain, the text of the error;
- a failure of the driver is status 500 with ``{"Err": ...}``, except for authorization drivers: status 200;
- an unknown path is status 404 with the text of net/http;
- fields that are empty are left out (omitempty), and lists that are nil are null.

This file is the program of a plugin, too: ``go_shapes.py KIND SOCKET STATE``.
"""

import json
import os
import signal
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

Document = dict[str, Any]


class DriverError(Exception):
    """What a Go driver returns as an error."""


class GoVolumes:
    """The shape of the helpers' volume example: a map with a lock; saved as a whole."""

    implements = "VolumeDriver"
    undecoded = ("VolumeDriver.List", "VolumeDriver.Capabilities")

    def __init__(self, state: Path) -> None:
        self.root, self.file, self.lock = state, state / "state.json", threading.Lock()
        state.mkdir(parents=True, exist_ok=True)
        self.volumes: dict[str, list[str]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        for name, users in self.volumes.items():
            if users:
                (self.root / "mnt" / name).mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.volumes))
        new.rename(self.file)

    def known(self, name: str) -> list[str]:
        if name not in self.volumes:
            raise DriverError(f"volume {name} not found")
        return self.volumes[name]

    def call(self, method: str, request: Document) -> Document:
        name = request.get("Name", "")
        with self.lock:
            match method.partition(".")[2]:
                case "Create":
                    self.volumes.setdefault(name, [])
                    (self.root / "mnt" / name).mkdir(parents=True, exist_ok=True)
                case "Remove":
                    if self.known(name):
                        raise DriverError(f"volume {name} is currently used by a container")
                    del self.volumes[name]
                case "Mount":
                    if request["ID"] not in self.known(name):
                        self.known(name).append(request["ID"])
                    self.save()
                    return {"Mountpoint": str(self.root / "mnt" / name)}
                case "Unmount":
                    if request["ID"] in self.known(name):
                        self.known(name).remove(request["ID"])
                case "Path":
                    self.known(name)
                    return {"Mountpoint": str(self.root / "mnt" / name)}
                case "Get":
                    self.known(name)
                    return {"Volume": {"Name": name, "Mountpoint": str(self.root / "mnt" / name)}}
                case "List":
                    return {"Volumes": [{"Name": each} for each in self.volumes] or None}
                case "Capabilities":
                    return {"Capabilities": {"Scope": "local"}}
                case _:
                    raise KeyError(method)
            self.save()
        return {}


class GoAuthorization:
    """The shape of the helpers' authorization handler: always status 200."""

    implements = "authz"
    undecoded: tuple[str, ...] = ()

    def __init__(self, state: Path) -> None:
        pass

    def call(self, method: str, request: Document) -> Document:
        if method not in ("AuthZPlugin.AuthZReq", "AuthZPlugin.AuthZRes"):
            raise KeyError(method)
        return {"Allow": request.get("RequestMethod") != "DELETE", "Msg": "", "Err": ""}


class GoAddresses:
    """The shape of the helpers' IPAM handler: errors in Err with status 500."""

    implements = "IpamDriver"
    undecoded = ("IpamDriver.GetCapabilities", "IpamDriver.GetDefaultAddressSpaces")

    def __init__(self, state: Path) -> None:
        self.used: dict[str, set[int]] = {}
        self.lock = threading.Lock()

    def call(self, method: str, request: Document) -> Document:
        with self.lock:
            match method.partition(".")[2]:
                case "GetCapabilities":
                    return {"RequiresMACAddress": False}
                case "GetDefaultAddressSpaces":
                    return {"LocalDefaultAddressSpace": "l", "GlobalDefaultAddressSpace": "g"}
                case "RequestPool":
                    self.used.setdefault(request["Pool"], {0, 255})
                    return {"PoolID": request["Pool"], "Pool": request["Pool"], "Data": None}
                case "RequestAddress":
                    if request["PoolID"] not in self.used:
                        raise DriverError("pool not found")
                    number = next(each for each in range(256) if each not in self.used[request["PoolID"]])
                    self.used[request["PoolID"]].add(number)
                    return {"Address": request["PoolID"].replace(".0/", f".{number}/")}
                case "ReleaseAddress":
                    self.used.get(request["PoolID"], set()).discard(int(request["Address"].rpartition(".")[2]))
                case "ReleasePool":
                    self.used.pop(request["PoolID"], None)
                case _:
                    raise KeyError(method)
        return {}


class GoNetworks:
    """The shape of the helpers' network handler."""

    implements = "NetworkDriver"
    undecoded = ("NetworkDriver.GetCapabilities",)

    def __init__(self, state: Path) -> None:
        self.endpoints: set[tuple[str, str]] = set()

    def call(self, method: str, request: Document) -> Document:
        key = request.get("NetworkID", ""), request.get("EndpointID", "")
        match method.partition(".")[2]:
            case "GetCapabilities":
                return {"Scope": "local", "ConnectivityScope": "local"}
            case "CreateEndpoint":
                self.endpoints.add(key)
                return {"Interface": None}
            case "EndpointOperInfo":
                return {"Value": None}
            case "DeleteEndpoint":
                self.endpoints.discard(key)
            case "Join" if key not in self.endpoints:
                raise DriverError("endpoint not found")
            case "CreateNetwork" | "DeleteNetwork" | "Join" | "Leave":
                pass
            case _:
                raise KeyError(method)
        return {}


KINDS = {"volume": GoVolumes, "authz": GoAuthorization, "ipam": GoAddresses, "network": GoNetworks}


class Handler(BaseHTTPRequestHandler):
    """net/http with the mux of sdk.Handler."""

    protocol_version = "HTTP/1.1"
    driver: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method = self.path.removeprefix("/")
        if method == "Plugin.Activate":
            text = f'{{"Implements": ["{self.driver.implements}"]}}\n'
            self.reply(200, text.encode())
            return
        try:
            try:
                request = {} if method in self.driver.undecoded else json.loads(body)
            except ValueError as error:
                self.reply(400, f"{'EOF' if not body else error}\n".encode(), "text/plain; charset=utf-8")
                return
            if not isinstance(request, dict):
                self.reply(400, b"json: cannot unmarshal array into Go value\n", "text/plain; charset=utf-8")
                return
            status, answer = 200, self.driver.call(method, request)
        except KeyError:
            self.reply(404, b"404 page not found\n", "text/plain; charset=utf-8")
            return
        except DriverError as error:
            status, answer = 500, {"Err": str(error)}
        self.reply(status, json.dumps(answer).encode() + b"\n")

    def reply(self, status: int, body: bytes, kind: str = "application/vnd.docker.plugins.v1.1+json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class GoServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 4096


def main(kind: str, socket: str, state: str) -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Handler.driver = KINDS[kind](Path(state))
    with GoServer(socket, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
