"""``moorage version``: our version, and those of what we run on."""

import os
import platform
import shutil
import subprocess

import click

from moorage import __version__
from moorage.cli.terminal import print_json, say

_SYSTEM_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _first_line(name: str) -> str:
    # The supervisor finds commands the same way, but to import it means to import gRPC.
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}")
    if path is None:
        return "not on this machine"
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not tell: {error}"
    return done.stdout.partition("\n")[0].strip()


@click.command(name="version", help="Show the versions of moorage, containerd, runc, Python and the kernel.")
@click.pass_obj
def command(as_json: bool) -> None:
    """Print them as lines, or as one JSON object."""
    versions = {
        "moorage": __version__,
        "containerd": _first_line("containerd"),
        "runc": _first_line("runc"),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
    if as_json:
        print_json(versions)
        return
    for name, version in versions.items():
        say(f"{name:<11} {version}")
