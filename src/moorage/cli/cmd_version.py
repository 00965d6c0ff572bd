"""``moorage version``: our version, and those of what we run on."""

import os
import platform

import click

from moorage import __version__, errors
from moorage.cli.context import is_json, json_option
from moorage.cli.engine_location import host_of
from moorage.cli.format.rows import print_rows, short_format_option
from moorage.cli.quick.versions import find_versions, print_versions, runtime_text
from moorage.client.host import parse_ssh, socket_of
from moorage.timeouts import DEFAULT


def _runtime_in_use() -> str:
    """Which runtime the engine has chosen for plugins that it starts, and why."""
    host = host_of(click.get_current_context())
    if parse_ssh(host) is None and not os.path.exists(socket_of(host)):
        return "no engine answers"
    from moorage.client import MoorageClient

    try:
        engine = MoorageClient(host, DEFAULT.engine_answer).info().moorage
    except errors.MoorageError as error:
        return f"unknown: {error}"
    return runtime_text(engine.runtime, engine.runtime_version, engine.runtime_reason)


def _client() -> dict[str, str]:
    """The field of docker's template {{.Client.Version}}."""
    return {"Version": __version__, "Os": "linux", "Arch": platform.machine()}


@click.command(
    name="version",
    help="Show the versions of moorage, containerd, runc, crun, Python and the kernel, and the runtime of the engine.",
)
@short_format_option
@json_option
def command(template: str | None) -> None:
    """Print them as lines, or as one JSON object."""
    versions = find_versions(_runtime_in_use)
    if template is not None:
        print_rows(template, [{**{name.title(): value for name, value in versions.items()}, "Client": _client()}])
        return
    print_versions(versions, is_json=is_json())
