"""``moorage logs``: the output of a plugin."""

from datetime import datetime

import click

from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.parameters import parse_instant
from moorage.cli.terminal import print_object, say, styled


@click.command(name="logs", help="Display the output of a plugin, also from before its last start.")
@click.argument("plugin", shell_complete=plugin_names)
@click.option("-n", "--tail", type=click.IntRange(min=0), help="Number of lines from the end.  [default: all]")
@click.option("--since", default="", help="Only output since a time (2026-01-02T03:04:05) or a duration ago (10m).")
@click.option("-f", "--follow", is_flag=True, help="Follow the output until the plugin is removed, or Ctrl-C.")
@click.option("--raw", is_flag=True, help="Pass on the colours of the plugin; escape other control characters.")
@json_option
def command(plugin: str, tail: int | None, since: str, follow: bool, raw: bool) -> None:
    """Show lines as they come."""
    as_json = is_json()
    for line in engine_client().logs(plugin, tail=tail, since=parse_instant(since, "--since"), follow=follow):
        if as_json:
            print_object(line)
            continue
        at = datetime.fromisoformat(line.at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        name = line.stream + ("+" if line.partial else "")  # it continues in the next line of this stream
        label = styled(name, "red" if line.stream == "stderr" else "blue")
        say(f"{at} ", label, " | ", line.text, colours=raw)
