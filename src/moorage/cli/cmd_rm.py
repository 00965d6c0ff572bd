"""``moorage rm``: remove plugins."""

import click

from moorage import errors
from moorage.cli.context import each_plugin, engine_client, json_option, plugins_argument, print_name


@click.command(name="rm", help="Remove one or more plugins.")
@plugins_argument("disabled (with --force, all)")
@click.option("-f", "--force", is_flag=True, help="Remove a plugin that is enabled or in use.")
@click.option("-i", "--ignore", is_flag=True, help="Succeed if a plugin does not exist.")
@json_option
def command(plugins: tuple[str, ...], every: bool, force: bool, ignore: bool) -> int:
    """Remove; continues after a failure."""

    def remove(name: str) -> None:
        client = engine_client()
        try:
            client.remove(name, force=force)
        except errors.NotFound:
            if not ignore:
                raise
            return
        except errors.Conflict as error:
            if force:
                raise
            raise errors.Conflict(_with_advice(name, error)) from error
        print_name(name)

    return each_plugin(plugins, remove, every=every, is_chosen=lambda each: force or not each.enabled)


def _with_advice(name: str, error: errors.Conflict) -> str:
    """The engine's text, which is the Docker daemon's, and what to do."""
    try:
        is_enabled = engine_client().inspect(name).enabled
    except errors.MoorageError:
        return str(error)
    if not is_enabled:
        return str(error)
    return f"cannot remove plugin {name}: it is enabled; disable it first, or rm -f"
