"""``moorage enable``: start a plugin, and keep it running."""

import click

from moorage import errors
from moorage.cli.consent import confirm_grant, grant_option
from moorage.cli.context import each_plugin, engine_client, json_option, plugins_argument, print_name
from moorage.cli.health.options import wait_option
from moorage.cli.parameters import OptionalValueCommand
from moorage.cli.terminal import warn


@click.command(
    cls=OptionalValueCommand,
    name="enable",
    help="Enable one or more plugins. One that is enabled already is left as it is; one that failed is started again.",
)
@plugins_argument("disabled")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.IntRange(min=0),
    default=0,
    help="Seconds to wait until it is ready.  [default: 30]",
)
@wait_option
@grant_option
@json_option
def command(plugins: tuple[str, ...], every: bool, timeout: int, wait: float, grant_all: bool) -> int:
    """Enable, after asking for privileges that were never granted; continues after a failure."""

    def enable(name: str) -> None:
        _enable(name, timeout, grant_all=grant_all)
        if wait:
            engine_client().wait_healthy(name, wait)
        print_name(name)

    return each_plugin(plugins, enable, every=every, is_chosen=lambda each: not each.enabled)


def _enable(name: str, timeout: int, *, grant_all: bool) -> None:
    client = engine_client()
    found = client.inspect(name)
    more = found.moorage
    if found.enabled:
        if more.state == "failed":
            client.restart(name)
        elif more.state != "ready":
            warn(f"plugin {found.name} is enabled, and {more.state}")
        return
    if more.ungranted:
        if not grant_all:
            confirm_grant(name, more.privileges)
        client.grant(name, more.privileges, attended=not grant_all)
    try:
        client.enable(name, timeout)
    except errors.Conflict:
        if not client.inspect(name).enabled:  # else another command has enabled it in between
            raise
