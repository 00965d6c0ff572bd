"""``moorage completion``: the script that makes a shell complete."""

import click


@click.command(
    name="completion",
    help="Generate the completion script for a shell: bash, zsh or fish.",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print it."""
    from moorage.cli.completion import script

    click.echo(script(shell, click.get_current_context().find_root().command), nl=False)
