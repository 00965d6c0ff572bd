"""``moorage call``: call a method of a plugin."""

import json

import click

from moorage import errors
from moorage.cli.context import engine_client, json_option, plugin_names
from moorage.cli.terminal import say_lines


@click.command(
    name="call",
    help="Call METHOD of a plugin, as in VolumeDriver.List, with DATA as JSON, and print the answer. The exit status "
    "is 1 if the answer is an error, also one in its Err.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.argument("method")
@click.argument("data", default="{}")
@click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait.  [default: 60]"
)
@json_option
def command(plugin: str, method: str, data: str, timeout: float) -> int:
    """Call."""
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise errors.Invalid(f"cannot call {method}: the data is not JSON: {error}") from error
    status, body = engine_client().call(plugin, method, data.encode(), timeout)
    say_lines(body.decode(errors="backslashreplace").rstrip("\n"))
    return 1 if status >= 400 or _has_error(body) else 0


def _has_error(body: bytes) -> bool:
    """Whether an answer names an error, as the plugin protocol has it: a key ``Err`` that is not empty."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and any(value for key, value in answer.items() if key.lower() == "err")
