"""``moorage run``: a plugin in the foreground, without any daemon."""

import math
import signal
from dataclasses import replace
from pathlib import Path

import click

from moorage._lib.importing import importing
from moorage.cli.common import directories
from moorage.cli.terminal import print_json, warn

_NOBODY_READS = 128 + signal.SIGPIPE


@click.command(
    name="run",
    help="Run the plugin in DIRECTORY (config.json beside rootfs/) in the foreground, with NAME=VALUE settings. "
    "Ctrl-C stops it; nothing is left, and DIRECTORY is not written to. The exit status is the plugin's, 128 + n if "
    "signal n killed it, and 130 after Ctrl-C.",
)
@click.argument("directory", type=click.Path(path_type=Path), shell_complete=directories)
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--print-spec", is_flag=True, help="Print the OCI runtime spec and start nothing.")
@click.option("--keep", is_flag=True, help="Keep what the plugin wrote to its root file system, and say where.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until the plugin must listen (30), or it is stopped.",
)
@click.option("--raw", is_flag=True, help="Pass on the colours that the plugin sets.")
@click.pass_obj
def command(
    as_json: bool,
    directory: Path,
    assignments: tuple[str, ...],
    print_spec: bool,
    keep: bool,
    timeout: float | None,
    raw: bool,
) -> int:
    """Load, plan, run; the exit status is returned to ``main``."""
    with importing():
        import anyio

        from moorage.cli.telling import JsonTeller, PlainTeller
        from moorage.engine.package import load_directory
        from moorage.plugins import NO_OVERRIDES, apply_settings, effective_settings
        from moorage.serve import RunOptions, plan_run, run_in_foreground
        from moorage.timeouts import DEFAULT

    if timeout is not None and math.isnan(timeout):
        raise click.BadParameter("it is not a number", param_hint="--timeout")
    plugin = load_directory(directory)
    for warning in plugin.parsed.warnings:
        warn(f"{plugin.path / 'config.json'}: {warning}")
    config = plugin.parsed.config
    settings = effective_settings(config, apply_settings(config, NO_OVERRIDES, assignments))
    if print_spec:
        print_json(plan_run(plugin, settings).spec, indent=2)
        return 0
    options = RunOptions(keep, replace(DEFAULT, ready=timeout) if timeout else DEFAULT)

    async def run() -> int:
        teller = JsonTeller() if as_json else PlainTeller(raw=raw)
        await teller.starting(plugin.path)
        return await run_in_foreground(plugin, settings, teller, options)

    try:
        return anyio.run(run, backend_options={"use_uvloop": True})
    except BrokenPipeError:
        return _NOBODY_READS
