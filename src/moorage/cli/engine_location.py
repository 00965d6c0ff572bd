"""Which engine a command uses, by its options, the environment, and what engines have recorded."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from moorage.client.host import DEFAULT_HOST, contexts_path, socket_of
from moorage.location import Location, locate, locate_by_socket
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.daemon import ServeOptions

__all__ = ("given_socket", "host_of", "locate_engine", "location_options", "serve_options")


_ANSWER_SECONDS = DEFAULT.engine_answer  # for each step of the answer of an engine


def given_socket() -> Path | None:
    """The socket that --host or MOORAGE_HOST names; None where neither was given."""
    root = click.get_current_context().find_root()
    if root.get_parameter_source("host") in (ParameterSource.DEFAULT, None):
        return None
    return Path(socket_of(root.params["host"]))


def host_of(context: click.Context) -> str:
    """The host of the engine: --context or --host, else MOORAGE_HOST, MOORAGE_CONTEXT, the socket of the engine
    that MOORAGE_ROOT or MOORAGE_EXEC_ROOT names, else the current context, else the default.
    """
    root = context.find_root()
    host = root.params.get("host") or os.environ.get("MOORAGE_HOST") or DEFAULT_HOST
    is_given = root.get_parameter_source("host") not in (ParameterSource.DEFAULT, None)
    is_given = is_given or bool(os.environ.get("MOORAGE_HOST"))
    directories = _from_environment("MOORAGE_ROOT"), _from_environment("MOORAGE_EXEC_ROOT")
    if name := root.params.get("context") or (not is_given and os.environ.get("MOORAGE_CONTEXT")) or "":
        return _context_host(name) or DEFAULT_HOST
    if is_given:
        return str(host)
    if directories != (None, None):
        return f"unix://{locate(*directories).socket}"
    return _context_host() or str(host)


def _context_host(name: str = "") -> str:
    """The host of a context, of the current one without a name; empty for the engine of this machine.

    Raises:
        errors.NotFound: there is no such context
    """
    if not name and not os.path.exists(contexts_path()):
        return ""
    from moorage.client.contexts import read_contexts

    return read_contexts().host(name)


def locate_engine(root: Path | None = None, exec_root: Path | None = None) -> Location:
    """The engine of these directories, or where neither was given, the one that --host names.

    Raises:
        errors.Denied: the user may not use the socket
        errors.Unavailable: no record and no answer says which engine listens at the socket
    """
    root, exec_root = root or _from_environment("MOORAGE_ROOT"), exec_root or _from_environment("MOORAGE_EXEC_ROOT")
    socket = given_socket()
    if socket is None or root is not None or exec_root is not None:
        return locate(root, exec_root)
    from moorage.client import MoorageClient

    return locate_by_socket(socket, lambda: MoorageClient(str(socket), _ANSWER_SECONDS).info())


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


def location_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that name an engine by its directories, namespace and containerd."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--root", type=path, envvar="MOORAGE_ROOT", help="Data directory.  [default: /var/lib/moorage]"),
        click.option(
            "--exec-root",
            type=path,
            envvar="MOORAGE_EXEC_ROOT",
            help="Directory of run-time files.  [default: the recorded one, or /run/moorage]",
        ),
        click.option(
            "--namespace",
            metavar="NAME",
            help="Namespace in containerd, fixed at the first start.  [default: plugins.moby]",
        ),
        click.option(
            "--containerd",
            metavar="private|system|SOCKET",
            envvar="MOORAGE_CONTAINERD",
            help="private (started by the engine), system, or a socket; fixed at the first start.  [default: private]",
        ),
    ):
        command = option(command)
    return command


def serve_options(
    location: Location, socket: Path | None, namespace: str | None, containerd: str | None, **more: Any
) -> "ServeOptions":
    """The options of an engine; ``more`` are other fields of them, by name."""
    from moorage.daemon import ServeOptions

    return ServeOptions(location.root, location.exec_root, socket, namespace, containerd, **more)
