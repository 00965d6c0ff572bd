"""Which engine a command line means, from its options, the environment, and what engines have recorded."""

import os
from pathlib import Path

import click
from click.core import ParameterSource

from moorage.client import DEFAULT_HOST, MoorageClient, socket_of
from moorage.location import Location, locate, locate_by_socket

__all__ = ("given_socket", "host_of", "locate_engine")

_PATIENCE = 5.0  # seconds for each step of an engine's answer


def given_socket() -> Path | None:
    """The socket that --host or MOORAGE_HOST names; None where neither was given."""
    root = click.get_current_context().find_root()
    if root.get_parameter_source("host") in (ParameterSource.DEFAULT, None):
        return None
    return Path(socket_of(root.params["host"]))


def host_of(context: click.Context) -> str:
    """Where commands look for the engine: --host, else the socket of the engine that MOORAGE_ROOT or MOORAGE_EXEC_ROOT
    names, else the default.
    """
    root = context.find_root()
    host = root.params.get("host") or os.environ.get("MOORAGE_HOST") or DEFAULT_HOST
    is_given = root.get_parameter_source("host") not in (ParameterSource.DEFAULT, None) or "MOORAGE_HOST" in os.environ
    directories = _from_environment("MOORAGE_ROOT"), _from_environment("MOORAGE_EXEC_ROOT")
    if is_given or directories == (None, None):
        return str(host)
    return f"unix://{locate(*directories).socket}"


def locate_engine(root: Path | None = None, exec_root: Path | None = None) -> Location:
    """The engine of these directories, or where neither was given, the one that --host names.

    Raises: Denied, Unavailable where nothing tells which engine listens at the socket.
    """
    root, exec_root = root or _from_environment("MOORAGE_ROOT"), exec_root or _from_environment("MOORAGE_EXEC_ROOT")
    socket = given_socket()
    if socket is None or root is not None or exec_root is not None:
        return locate(root, exec_root)
    return locate_by_socket(socket, lambda: MoorageClient(str(socket), _PATIENCE).info())


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None
