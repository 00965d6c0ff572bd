"""``moorage kill``: signals plugins."""

import click

from moorage.cli.context import each_plugin, engine_client, json_option, plugins_argument, print_name


@click.command(
    name="kill",
    help="Send a signal to one or more running plugins. A plugin that exits is restarted as its policy has it.",
)
@plugins_argument("running")
@click.option("-s", "--signal", metavar="SIGNAL", default="KILL", show_default=True, help="Signal to send.")
@json_option
def command(plugins: tuple[str, ...], every: bool, signal: str) -> int:
    """Signal; continues after a failure."""

    def kill(name: str) -> None:
        engine_client().kill(name, signal)
        print_name(name)

    return each_plugin(plugins, kill, every=every, is_chosen=lambda each: each.moorage.pid is not None)
