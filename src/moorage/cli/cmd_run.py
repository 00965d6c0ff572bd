"""``moorage run``: a plugin in the foreground, without any daemon."""

import math
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage._lib.imports import collector_paused
from moorage.cli.context import directories, is_json, json_option
from moorage.cli.parameters import runtime_option
from moorage.cli.terminal import print_json, warn

if TYPE_CHECKING:
    from moorage.packages.directory import PluginDirectory
    from moorage.plugins import Settings

_BROKEN_PIPE = 128 + signal.SIGPIPE


@click.command(
    name="run",
    help="Run a plugin from a directory (config.json beside rootfs/) in the foreground, with settings NAME=VALUE, "
    "until Ctrl-C. The directory is not written to. The exit status is the plugin's, 128 + n if signal n killed it, "
    "and 130 after Ctrl-C.",
)
@click.argument("directory", type=click.Path(path_type=Path), shell_complete=directories)
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--print-spec", is_flag=True, help="Print the OCI runtime spec, and do not start the plugin.")
@click.option("--keep", is_flag=True, help="Retain what the plugin wrote to its root file system, and print the path.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait until the plugin listens.  [default: 30]",
)
@click.option("--watch", is_flag=True, help="Stop the plugin and start it again whenever DIRECTORY changes.")
@runtime_option
@click.option("--raw", is_flag=True, help="Pass on the colours of the plugin.")
@json_option
def command(
    directory: Path,
    assignments: tuple[str, ...],
    print_spec: bool,
    keep: bool,
    timeout: float | None,
    watch: bool,
    runtime: str,
    raw: bool,
) -> int:
    """Load, plan, run; the exit status is returned to ``main``."""
    with collector_paused():
        import anyio
        from msgspec.structs import replace as struct_replace

        from moorage.cli.run_output import JsonPrinter, TextPrinter
        from moorage.foreground.session import ForegroundExit, RunOptions, plan_run, run_in_foreground
        from moorage.foreground.watch import run_on_changes
        from moorage.timeouts import DEFAULT

    _check_options(timeout, watch=watch, keep=keep, print_spec=print_spec)
    if print_spec:
        print_json(plan_run(*_load(directory, assignments)).spec, indent=2)
        return 0
    options = RunOptions(keep, replace(DEFAULT, ready=timeout) if timeout else DEFAULT, runtime)
    printer = JsonPrinter() if is_json() else TextPrinter(raw=raw)

    async def run_once(changed: Callable[[], Awaitable[None]] | None) -> ForegroundExit:
        plugin, settings = await anyio.to_thread.run_sync(_load, directory, assignments)
        await printer.starting(plugin.path)
        return await run_in_foreground(plugin, settings, printer, struct_replace(options, changed=changed))

    async def run() -> int:
        if watch:
            return await run_on_changes(directory, run_once, printer)
        return (await run_once(None)).status

    try:
        return anyio.run(run, backend_options={"use_uvloop": True})
    except BrokenPipeError:
        return _BROKEN_PIPE


def _check_options(timeout: float | None, *, watch: bool, keep: bool, print_spec: bool) -> None:
    if timeout is not None and math.isnan(timeout):
        raise click.BadParameter("it is not a number", param_hint="--timeout")
    if watch and (print_spec or keep):
        raise click.UsageError(f"give --watch or {'--print-spec' if print_spec else '--keep'}, not both")


def _load(directory: Path, assignments: Sequence[str]) -> "tuple[PluginDirectory, Settings]":
    """The plugin and its settings. Raises: NotFound; Invalid."""
    from moorage.packages.directory import load_directory
    from moorage.plugins import NO_OVERRIDES, apply_settings, effective_settings

    plugin = load_directory(directory)
    for warning in plugin.parsed.warnings:
        warn(f"{plugin.path / 'config.json'}: {warning}")
    config = plugin.parsed.config
    return plugin, effective_settings(config, apply_settings(config, NO_OVERRIDES, assignments))
