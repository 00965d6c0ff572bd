"""``moorage publish``: sockets of a plugin for the programs that use it."""

from typing import Any

import click

from moorage.cli.context import engine_client, is_json, json_option, plugin_names
from moorage.cli.parameters import TIME_LIMIT
from moorage.cli.terminal import print_object, say


@click.command(
    name="publish",
    help="Publish a plugin: podman, dockerd and other programs reach it by a socket in /run/docker/plugins, also while "
    "the engine is restarted. A plugin that is published already gets these names and options instead.",
)
@click.argument("plugin", shell_complete=plugin_names)
@click.option(
    "--as", "names", metavar="NAME", multiple=True, help="Name of the socket, without .sock.  [default: the plugin's]"
)
@click.option("--group", metavar="GROUP", help="Group whose members may use the plugin, besides root.")
@click.option(
    "--while-disabled",
    type=click.Choice(["auto", "unlink", "answer"]),
    default="auto",
    show_default=True,
    help="While the plugin is disabled: remove the socket, or answer with what is known of its volumes; auto answers "
    "if podman has volumes of the plugin.",
)
@click.option(
    "--while-unhealthy",
    type=click.Choice(["forward", "fail"]),
    default="forward",
    show_default=True,
    help="Calls while the health checks of the plugin fail: forward them, or let them fail at once.",
)
@click.option("--no-replay", is_flag=True, help="Do not repeat mounts and log streams when the plugin is restarted.")
@click.option(
    "--at-once",
    metavar="N",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Maximum number of calls that the plugin gets at the same time.",
)
@click.option(
    "--time-limit",
    "time_limits",
    type=TIME_LIMIT,
    metavar="CALL=SECONDS",
    multiple=True,
    help="Time limit of a call, as in VolumeDriver.Mount=300.",
)
@click.option(
    "--podman/--no-podman",
    default=None,
    help="Write the volume driver into the configuration of podman, or do not.  [default: if podman is installed]",
)
@click.option("-f", "--force", is_flag=True, help="Publish a plugin that dockerd cannot use.")
@json_option
def command(
    plugin: str,
    names: tuple[str, ...],
    group: str | None,
    while_disabled: Any,
    while_unhealthy: Any,
    no_replay: bool,
    at_once: int,
    time_limits: tuple[tuple[str, float], ...],
    podman: bool | None,
    force: bool,
) -> None:
    """Publish."""
    from msgspec import UNSET

    from moorage.api.schema.consumers import PublishRequest

    request = PublishRequest(
        names=list(names),
        group=group or "",
        while_disabled=while_disabled,
        while_unhealthy=while_unhealthy,
        replay=not no_replay,
        at_once=at_once,
        time_limits=dict(time_limits),
        podman=UNSET if podman is None else podman,
        force=force,
    )
    made = engine_client().publish(plugin, request).moorage.published
    if is_json():
        print_object(made)
    else:
        for name in made.names if made is not None else ():
            say(name)
