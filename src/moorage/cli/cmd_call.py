"""``moorage call`` and ``moorage probe``: talk to a plugin."""

import json

import click

from moorage import errors
from moorage.cli.common import json_option, plugin_names, reach, wants_json
from moorage.cli.terminal import print_json, say, say_lines


@click.command(
    name="call",
    help="POST to PLUGIN's socket: METHOD as in VolumeDriver.List, DATA as JSON. Prints what it answers; exit status 1 "
    "if that is an error, also one in the answer's Err.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("method")
@click.argument("data", default="{}")
@click.option("--timeout", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait for the answer (0: 60).")
@json_option
def command(plugin: str, method: str, data: str, timeout: float) -> int:
    """Call."""
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"cannot call {method}: the data is no JSON: {error}") from error
    status, body = reach().call(plugin, method, data.encode(), timeout)
    say_lines(body.decode(errors="backslashreplace").rstrip("\n"))
    return 1 if status >= 400 or _has_error(body) else 0


def _has_error(body: bytes) -> bool:
    """Whether an answer names an error, as the plugin protocol has it: a key ``Err`` that is not empty."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and any(value for key, value in answer.items() if key.lower() == "err")


@click.command(
    name="probe", help="Ask PLUGIN, which must run, what it implements. Many plugins answer nothing, and work."
)
@click.argument("plugin", shell_complete=plugin_names)
@click.option("--timeout", type=click.FloatRange(min=0), default=10.0, help="Seconds to wait for the answer (10).")
@json_option
def probe(plugin: str, timeout: float) -> None:
    """Probe."""
    from moorage.plugins.activation import find_mismatch

    client = reach()
    types = client.inspect(plugin)["Config"]["Interface"]["Types"]
    status, body = client.call(plugin, "Plugin.Activate", b"", timeout)
    implements, problem = None, ""
    try:
        answer = json.loads(body)
        implements = answer.get("Implements") if isinstance(answer, dict) else None
        if implements is not None and not _is_list_of_names(implements):
            implements, problem = None, "answers /Plugin.Activate with an Implements that is not a list of names"
    except (ValueError, RecursionError):
        problem = f"answers {status} and no JSON to /Plugin.Activate"
    if status != 200:
        implements, problem = None, f"answers {status} to /Plugin.Activate"
    problem = problem or find_mismatch(types, implements if isinstance(implements, list) else None)
    if wants_json():
        print_json({"types": types, "implements": implements, "problem": problem})
        return
    say(f"says in its config: {', '.join(types) or 'nothing'}")
    say(f"says of itself:     {', '.join(implements or ()) or problem or 'nothing'}")
    if implements and problem:
        say(f"warning: {problem}")


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
