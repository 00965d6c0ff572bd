"""``moorage completion``: the script that makes a shell complete."""

import click


@click.command(
    name="completion",
    help="Print the script that makes SHELL (bash, zsh or fish) complete commands, options, and names of plugins.",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print it."""
    from moorage.cli.completing import script

    click.echo(script(shell, click.get_current_context().find_root().command), nl=False)
