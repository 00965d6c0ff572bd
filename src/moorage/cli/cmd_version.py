"""``moorage version``: our version, and those of what we run on."""

import json
import platform
import subprocess

import click

from moorage import __version__, errors


def _first_line(name: str) -> str:
    from moorage.containerd.supervisor import find_binary

    try:
        done = subprocess.run([find_binary(name), "--version"], capture_output=True, text=True, check=True, timeout=10)
    except errors.Unsupported:
        return "not on this machine"
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
        click.echo(json.dumps(versions))
        return
    for name, version in versions.items():
        click.echo(f"{name:<11} {version}")
