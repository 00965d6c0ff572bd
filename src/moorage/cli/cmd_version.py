"""``moorage version``: our version, and those of what we run on."""

import os
import platform
import shutil
import subprocess

import click

from moorage import __version__, errors
from moorage.cli.context import is_json, json_option
from moorage.cli.engine_location import host_of
from moorage.cli.format.rows import print_rows, short_format_option
from moorage.cli.terminal import print_json, say
from moorage.client.host import parse_ssh, socket_of
from moorage.timeouts import DEFAULT

_SYSTEM_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _first_line(name: str, *options: str) -> str:
    # The supervisor finds commands the same way, but to import it means to import gRPC.
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}")
    if path is None:
        return "not installed"
    try:
        done = subprocess.run([path, *options, "--version"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return done.stdout.partition("\n")[0].strip()


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
    return f"{engine.runtime_version or engine.runtime} ({engine.runtime_reason})" if engine.runtime else "unknown"


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
    versions = {
        "moorage": __version__,
        "containerd": _first_line("containerd"),
        "runc": _first_line("runc"),
        "crun": _first_line("crun", "--root", "/"),  # without a root it makes /run/crun
        "runtime": _runtime_in_use(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
    if template is not None:
        print_rows(template, [{**{name.title(): value for name, value in versions.items()}, "Client": _client()}])
        return
    if is_json():
        print_json(versions)
        return
    for name, version in versions.items():
        say(f"{name:<11} {version}")
