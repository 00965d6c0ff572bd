"""``moorage dial-stdio``: the engine's socket on our standard streams, for clients that come by ssh."""

import os
import select
import socket

import click

from moorage import errors
from moorage.cli.engine_location import host_of
from moorage.client.host import socket_of

_CHUNK = 65536


@click.command(name="dial-stdio", hidden=True, help="Connect the standard streams to the engine's socket.")
def command() -> None:
    """Copy both ways until the engine closes the connection."""
    path = socket_of(host_of(click.get_current_context()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as engine:
        try:
            engine.connect(path)
        except OSError as error:
            raise errors.Unavailable(f"cannot reach moorage at {path}: {error.strerror}") from error
        _copy(engine)


def _copy(engine: socket.socket) -> None:
    sources = [0, engine.fileno()]
    while engine.fileno() in sources:
        readable, _, _ = select.select(sources, [], [])
        if 0 in readable:
            if data := os.read(0, _CHUNK):
                engine.sendall(data)
            else:
                sources.remove(0)
                engine.shutdown(socket.SHUT_WR)
        if engine.fileno() in readable:
            data = engine.recv(_CHUNK)
            if not data:
                return
            while data:
                data = data[os.write(1, data) :]
