"""Shows what ``moorage run`` reports: as text for people, as JSON for programs."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from moorage._lib.escapes import escape
from moorage.cli.output import Output
from moorage.cli.terminal import indented, json_text
from moorage.foreground.events import (
    ChangesRetained,
    DirectoryChanged,
    ForegroundEvent,
    RunExited,
    RunOutput,
    RunReady,
    RunRemoved,
    RunStarted,
    RunWaiting,
)
from moorage.runs.exit_text import describe_exit
from moorage.runs.plan import RunPlan

_ALLOWED_CONTROLS = "\n\t"

__all__ = ("JsonPrinter", "TextPrinter")


class TextPrinter:
    """For people: the plugin's output on standard output with time and stream, Moorage's own on standard error."""

    def __init__(self, *, raw: bool = False) -> None:
        """``raw`` passes on the colours that the plugin sets."""
        self._out, self._err, self._raw = Output(sys.stdout), Output(sys.stderr), raw

    async def __call__(self, event: ForegroundEvent) -> None:
        """Print an event. Raises: OSError where it cannot be written."""
        match event:
            case RunOutput(stream, at, texts):
                time = at.astimezone().strftime("%H:%M:%S.%f")[:-3]
                colour = "red" if stream == "stderr" else "blue"
                label = click.style(stream, fg=colour) if self._out.is_terminal else stream
                shown = [escape(text, keep="\t", colours=self._raw) for text in texts]
                await self._out.write("".join(f"{time} {label} | {text}\n" for text in shown))
            case RunStarted(plan):
                await self._print(f"socket {plan.socket.path}")
                if plan.propagated_mount is not None:
                    await self._print(f"propagated mount {plan.propagated_mount}")
            case RunReady(seconds):
                await self._print(f"ready after {seconds:.3f} s{_implements(event)}")
                if (activation := event.activation) is not None and activation.implements and activation.problem:
                    await self._print(f"warning: {activation.problem}")
            case RunExited(exit, reason):
                await self._print(f"the plugin {describe_exit(exit)}{f': {reason}' if reason else ''}")
            case ChangesRetained(changes):
                await self._print(f"the plugin's changes are in {changes}")
            case RunRemoved():
                pass
            case RunWaiting(directory, failure):
                await self._print(f"{failure}{'; ' if failure else ''}waiting for a change in {directory}")
            case DirectoryChanged(directory):
                await self._print(f"{directory} has changed")

    async def starting(self, directory: Path) -> None:
        """Print, before anything else, which plugin is run."""
        await self._print(f"starting {directory}")

    async def _print(self, text: str) -> None:
        await self._err.write(f"moorage: {escape(indented(text), keep=_ALLOWED_CONTROLS)}\n")


class JsonPrinter:
    """For programs: each event is one JSON object on a line of standard output."""

    def __init__(self) -> None:
        self._out = Output(sys.stdout)

    async def __call__(self, event: ForegroundEvent) -> None:
        """Print an event. Raises: OSError where it cannot be written."""
        match event:
            case RunOutput(stream, at, texts):
                begin = _json("output", stream=stream, time=at.isoformat()).rstrip().removesuffix("}")
                await self._out.write("".join(f'{begin}, "line": {json_text(text)}}}\n' for text in texts))
            case RunStarted(plan):
                await self._out.write(_json("started", **_paths(plan)))
            case RunReady(seconds, activation):
                implements = activation.implements if activation else None
                problem = activation.problem if activation else ""
                values = {"seconds": round(seconds, 6), "implements": implements, "problem": problem}
                await self._out.write(_json("ready", **values))
            case RunExited(exit, reason):
                values = {"code": exit.code, "signal": exit.signal, "oom": exit.oom, "reason": reason}
                await self._out.write(_json("exit", **values))
            case ChangesRetained(changes):
                await self._out.write(_json("kept", changes=str(changes)))
            case RunRemoved():
                await self._out.write(_json("gone"))
            case RunWaiting(directory, failure):
                await self._out.write(_json("waiting", directory=str(directory), error=failure))
            case DirectoryChanged(directory):
                await self._out.write(_json("changed", directory=str(directory)))

    async def starting(self, directory: Path) -> None:
        """Print, before anything else, which plugin is run."""
        now = datetime.now(UTC).isoformat()
        await self._out.write(_json("starting", directory=str(directory), time=now))


def _json(event: str, **values: object) -> str:
    return f"{json_text({'event': event, **values})}\n"


def _paths(plan: RunPlan) -> dict[str, object]:
    propagated = str(plan.propagated_mount) if plan.propagated_mount else None
    return {
        "id": plan.directories.id,
        "socket": plan.socket.path,
        "root": str(plan.directories.root),
        "propagated_mount": propagated,
    }


def _implements(ready: RunReady) -> str:
    if ready.activation is None:
        return ", does not speak HTTP"
    if ready.activation.problem and not ready.activation.implements:
        return f", {ready.activation.problem}"
    if not ready.activation.implements:
        return ", implements nothing (its answer to /Plugin.Activate lists nothing)"
    return f", implements {', '.join(ready.activation.implements)}"
