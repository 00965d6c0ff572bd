"""``moorage probe``: what a plugin implements."""

import json

import click

from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.terminal import print_json, say


@click.command(name="probe", help="Show which interfaces a running plugin implements.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=10.0,
    help="Seconds to wait for the answer.  [default: 10]",
)
@json_option
def command(plugin: str, timeout: float) -> None:
    """Probe. Many plugins do not answer, and work."""
    from moorage.plugins.activation import find_mismatch

    client = engine_client()
    types = client.inspect(plugin).config.interface.types
    status, body = client.call(plugin, "Plugin.Activate", b"", timeout)
    implements, problem = _read_answer(status, body)
    problem = problem or find_mismatch(types, implements)
    if is_json():
        print_json({"types": types, "implements": implements, "problem": problem})
        return
    say(f"declared by its config: {', '.join(types) or 'nothing'}")
    say(f"reported by itself:     {', '.join(implements or ()) or problem or 'nothing'}")
    if implements and problem:
        say(f"warning: {problem}")


def _read_answer(status: int, body: bytes) -> tuple[list[str] | None, str]:
    """What an answer to Plugin.Activate lists, None for no list, and what is wrong with it, "" for nothing."""
    if status != 200:
        return None, f"answers {status} to /Plugin.Activate"
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None, f"answers {status} and no JSON to /Plugin.Activate"
    implements = answer.get("Implements") if isinstance(answer, dict) else None
    if implements is None:
        return None, ""
    if not isinstance(implements, list) or not all(isinstance(each, str) for each in implements):
        return None, "answers /Plugin.Activate with an Implements that is not a list of names"
    return implements, ""
