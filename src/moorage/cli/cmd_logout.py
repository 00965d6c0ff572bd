"""``moorage logout``: removes the stored credentials for a registry."""

import click

from moorage.cli.context import is_json, json_option
from moorage.cli.terminal import print_json, say


@click.command(name="logout", help="Log out from a registry, by default Docker Hub: remove the stored credentials.")
@click.argument("server", required=False, default="")
@json_option
def command(server: str) -> None:
    """Log out."""
    import os

    import anyio

    from moorage.registry.docker_config import docker_config_path, remove_credentials
    from moorage.registry.login import registry_of

    host = registry_of(server)
    removed = anyio.run(remove_credentials, docker_config_path(os.environ), host)
    if is_json():
        print_json({"Registry": host, "Removed": removed})
    else:
        say(f"Removing login credentials for {host}" if removed else f"Not logged in to {host}")
