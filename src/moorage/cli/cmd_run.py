"""``moorage run``: a plugin in the foreground, without any daemon."""

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click

from moorage.engine.foreground import Ended, Happened, Line, Plan, Ready, Started


@click.command(
    name="run",
    help="Run the plugin in DIRECTORY (config.json beside rootfs/) in the foreground, with NAME=VALUE settings. "
    "Ctrl-C stops it; nothing is left, and DIRECTORY is not written to. The exit status is the plugin's, 128 + n if "
    "signal n killed it, and 130 after Ctrl-C.",
)
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("assignments", metavar="[NAME=VALUE]...", nargs=-1)
@click.option("--print-spec", is_flag=True, help="Print the OCI runtime spec and start nothing.")
@click.option("--keep", is_flag=True, help="Keep what the plugin wrote to its root file system, and say where.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until the plugin must listen (30), or it is stopped.",
)
@click.pass_obj
def command(
    as_json: bool, directory: Path, assignments: tuple[str, ...], print_spec: bool, keep: bool, timeout: float | None
) -> int:
    """Load, plan, run; the exit status is returned to ``main``."""
    import anyio

    from moorage.engine.package import load_directory
    from moorage.plugins import NO_OVERRIDES, apply_settings, effective_settings
    from moorage.serve import RunOptions, plan_run, run_in_foreground
    from moorage.timeouts import DEFAULT

    plugin = load_directory(directory)
    for warning in plugin.parsed.warnings:
        click.echo(f"moorage: warning: {plugin.path / 'config.json'}: {warning}", err=True)
    config = plugin.parsed.config
    settings = effective_settings(config, apply_settings(config, NO_OVERRIDES, assignments))
    if print_spec:
        click.echo(json.dumps(plan_run(plugin, settings).spec, indent=2))
        return 0
    teller = _JsonTeller() if as_json else _Teller()
    teller.starting(plugin.path)
    timeouts = replace(DEFAULT, ready=timeout) if timeout else DEFAULT
    status = anyio.run(
        lambda: run_in_foreground(plugin, settings, teller, RunOptions(keep, timeouts), teller.kept),
        backend_options={"use_uvloop": True},
    )
    teller.gone()
    return status


class _Teller:
    """For people: output on standard output with time and stream, everything of ours on standard error."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty()

    def __call__(self, happened: Happened) -> None:
        match happened:
            case Line(stream, at, text):
                time = at.astimezone().strftime("%H:%M:%S.%f")[:-3]
                label = click.style(stream, fg="red" if stream == "stderr" else "blue") if self._coloured else stream
                click.echo(f"{time} {label} | {text}")
            case Started(plan):
                self._say(f"socket {plan.socket}")
                if plan.propagated_mount is not None:
                    self._say(f"propagated mount {plan.propagated_mount}")
            case Ready(seconds):
                self._say(f"ready after {seconds:.3f} s{_implements(happened)}")
            case Ended(exit, reason):
                how = "ended"
                if exit.oom:
                    how = "was killed for want of memory"
                elif exit.signal:
                    how = f"was killed by {exit.signal}"
                elif exit.code is not None:
                    how = f"ended with status {exit.code}"
                self._say(f"the plugin {how}{f': {reason}' if reason else ''}")

    def starting(self, directory: Path) -> None:
        self._say(f"starting {directory}")

    def kept(self, changes: Path) -> None:
        self._say(f"what the plugin wrote is in {changes}")

    def gone(self) -> None:
        pass

    def _say(self, text: str) -> None:
        click.echo(f"moorage: {text}", err=True)


class _JsonTeller:
    """For programs: every happening is one JSON object on a line of standard output."""

    def __call__(self, happened: Happened) -> None:
        match happened:
            case Line(stream, at, text):
                self._print("output", stream=stream, time=at.isoformat(), line=text)
            case Started(plan):
                self._print("started", **_places(plan))
            case Ready(seconds, activation):
                implements = activation.implements if activation else None
                problem = activation.problem if activation else ""
                self._print("ready", seconds=round(seconds, 6), implements=implements, problem=problem)
            case Ended(exit, reason):
                self._print("exit", code=exit.code, signal=exit.signal, oom=exit.oom, reason=reason)

    def starting(self, directory: Path) -> None:
        self._print("starting", directory=str(directory), time=datetime.now(UTC).isoformat())

    def kept(self, changes: Path) -> None:
        self._print("kept", changes=str(changes))

    def gone(self) -> None:
        self._print("gone")

    def _print(self, event: str, **values: object) -> None:
        click.echo(json.dumps({"event": event, **values}))


def _places(plan: Plan) -> dict[str, object]:
    propagated = str(plan.propagated_mount) if plan.propagated_mount else None
    return {"id": plan.id, "socket": plan.socket, "root": str(plan.root), "propagated_mount": propagated}


def _implements(ready: Ready) -> str:
    if ready.activation is None:
        return ", speaks no HTTP"
    if ready.activation.problem:
        return f", {ready.activation.problem}"
    return f", implements {', '.join(ready.activation.implements or ()) or 'nothing that it tells'}"
