"""What happens to a plugin in the foreground, in words for people and in JSON for programs."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from moorage._lib.escaping import escape
from moorage.cli.output import Output
from moorage.cli.terminal import indented, json_text
from moorage.engine.foreground import Ended, Gone, Happened, Kept, Lines, Plan, Ready, Started
from moorage.executor import Exit

_KEPT = "\n\t"

__all__ = ("JsonTeller", "PlainTeller")


class PlainTeller:
    """For people: output on standard output with time and stream, everything of ours on standard error."""

    def __init__(self, *, raw: bool = False) -> None:
        """With ``raw`` the colours that the plugin sets are passed on."""
        self._out, self._err, self._raw = Output(sys.stdout), Output(sys.stderr), raw

    async def __call__(self, happened: Happened) -> None:
        match happened:
            case Lines(stream, at, texts):
                time = at.astimezone().strftime("%H:%M:%S.%f")[:-3]
                colour = "red" if stream == "stderr" else "blue"
                label = click.style(stream, fg=colour) if self._out.is_terminal else stream
                shown = [escape(text, keep="\t", colours=self._raw) for text in texts]
                await self._out.write("".join(f"{time} {label} | {text}\n" for text in shown))
            case Started(plan):
                await self._say(f"socket {plan.socket.path}")
                if plan.propagated_mount is not None:
                    await self._say(f"propagated mount {plan.propagated_mount}")
            case Ready(seconds):
                await self._say(f"ready after {seconds:.3f} s{_implements(happened)}")
                if (activation := happened.activation) is not None and activation.implements and activation.problem:
                    await self._say(f"warning: {activation.problem}")
            case Ended(exit, reason):
                await self._say(f"the plugin {_how(exit)}{f': {reason}' if reason else ''}")
            case Kept(changes):
                await self._say(f"what the plugin wrote is in {changes}")
            case Gone():
                pass

    async def starting(self, directory: Path) -> None:
        """Tell, before anything else happens, what is run."""
        await self._say(f"starting {directory}")

    async def _say(self, text: str) -> None:
        await self._err.write(f"moorage: {escape(indented(text), keep=_KEPT)}\n")


class JsonTeller:
    """For programs: every happening is one JSON object on a line of standard output."""

    def __init__(self) -> None:
        self._out = Output(sys.stdout)

    async def __call__(self, happened: Happened) -> None:
        match happened:
            case Lines(stream, at, texts):
                begin = _json("output", stream=stream, time=at.isoformat()).rstrip().removesuffix("}")
                await self._out.write("".join(f'{begin}, "line": {json_text(text)}}}\n' for text in texts))
            case Started(plan):
                await self._out.write(_json("started", **_places(plan)))
            case Ready(seconds, activation):
                implements = activation.implements if activation else None
                problem = activation.problem if activation else ""
                values = {"seconds": round(seconds, 6), "implements": implements, "problem": problem}
                await self._out.write(_json("ready", **values))
            case Ended(exit, reason):
                values = {"code": exit.code, "signal": exit.signal, "oom": exit.oom, "reason": reason}
                await self._out.write(_json("exit", **values))
            case Kept(changes):
                await self._out.write(_json("kept", changes=str(changes)))
            case Gone():
                await self._out.write(_json("gone"))

    async def starting(self, directory: Path) -> None:
        """Tell, before anything else happens, what is run."""
        now = datetime.now(UTC).isoformat()
        await self._out.write(_json("starting", directory=str(directory), time=now))


def _json(event: str, **values: object) -> str:
    return f"{json_text({'event': event, **values})}\n"


def _places(plan: Plan) -> dict[str, object]:
    propagated = str(plan.propagated_mount) if plan.propagated_mount else None
    return {"id": plan.id, "socket": plan.socket.path, "root": str(plan.root), "propagated_mount": propagated}


def _how(exit: Exit) -> str:
    if exit.oom:
        return "was killed for want of memory"
    if exit.signal:
        return f"was killed by {exit.signal}"
    return "ended" if exit.code is None else f"ended with status {exit.code}"


def _implements(ready: Ready) -> str:
    if ready.activation is None:
        return ", speaks no HTTP"
    if ready.activation.problem and not ready.activation.implements:
        return f", {ready.activation.problem}"
    return f", implements {', '.join(ready.activation.implements or ()) or 'nothing that it tells'}"
