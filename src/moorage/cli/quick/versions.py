"""Versions of Moorage and of what it runs on."""

import os
import sys
from collections.abc import Callable, Mapping

from moorage import __version__
from moorage.cli.terminal import print_json, say

__all__ = ("find_versions", "print_versions", "runtime_text")

_SYSTEM_PATHS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = {"containerd": (), "runc": (), "crun": ("--root", "/")}  # without a root crun makes /run/crun


def find_versions(find_runtime: Callable[[], str]) -> dict[str, str]:
    """Versions by name; ``find_runtime`` returns what the engine says of its runtime. The programs run side by side."""
    started = {name: _start(name, *options) for name, options in _PROGRAMS.items()}
    try:
        runtime = find_runtime()
    finally:
        programs = {name: finish() for name, finish in started.items()}
    kernel = os.uname().release
    python = sys.version.partition(" ")[0]
    return {"moorage": __version__, **programs, "runtime": runtime, "python": python, "kernel": kernel}


def runtime_text(runtime: str, version: str, reason: str) -> str:
    """Which runtime the engine has chosen for plugins that it starts, and why."""
    return f"{version or runtime} ({reason})" if runtime else "unknown"


def print_versions(versions: Mapping[str, str], *, is_json: bool) -> None:
    """Print them as lines, or as one JSON object."""
    if is_json:
        print_json(versions)
        return
    for name, version in versions.items():
        say(f"{name:<11} {version}")


def _start(name: str, *options: str) -> Callable[[], str]:
    """Start a program; what is returned waits for it and returns the first line of its version."""
    import subprocess

    from moorage.timeouts import DEFAULT

    # The supervisor finds commands the same way, but to import it means to import gRPC.
    path = _find_program(name)
    if path is None:
        return lambda: "not installed"
    command = [path, *options, "--version"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except OSError as error:
        text = f"unknown: {error}"
        return lambda: text

    def finish() -> str:
        with process:
            try:
                output, _ = process.communicate(timeout=DEFAULT.program_version)
            except subprocess.TimeoutExpired as error:
                process.kill()
                return f"unknown: {error}"
        if process.returncode:
            return f"unknown: {subprocess.CalledProcessError(process.returncode, command)}"
        return output.partition("\n")[0].strip()

    return finish


def _find_program(name: str) -> str | None:
    for directory in f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}".split(":"):
        path = os.path.join(directory, name)
        if directory and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
