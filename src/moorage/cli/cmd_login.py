"""``moorage login``: credentials for a registry, checked by the engine and stored as docker stores them."""

import sys

import click

from moorage import errors
from moorage.cli.context import engine_client, is_json, json_option
from moorage.cli.terminal import print_json, prompt, say, warn


@click.command(
    name="login",
    help="Log in to a registry, by default Docker Hub. The credentials are stored in docker's config.json, or by the "
    "credential helper that it names.",
)
@click.argument("server", required=False, default="")
@click.option("-u", "--username", metavar="NAME", default="", help="Username.")
@click.option(
    "-p",
    "--password",
    metavar="PASSWORD",
    default="",
    help="Password; the shell's history has it, so prefer --password-stdin.",
)
@click.option("--password-stdin", "from_stdin", is_flag=True, help="Take the password from standard input.")
@json_option
def command(server: str, username: str, password: str, from_stdin: bool) -> None:
    """Log in."""
    import os

    import anyio

    from moorage.api.schema.system import AuthRequest
    from moorage.registry.credentials import Credentials
    from moorage.registry.docker_config import docker_config_path, store_credentials
    from moorage.registry.login import registry_of

    host = registry_of(server)
    username, password = _credentials(username, password, from_stdin=from_stdin)
    status = engine_client().log_in(AuthRequest(username, password, serveraddress=server))
    path = docker_config_path(os.environ)
    credentials = Credentials(username, password, status.identity_token)
    if not anyio.run(store_credentials, path, host, credentials):
        warn(f"the credentials are stored unencrypted in {path}; a credential helper (credsStore) would encrypt them")
    if is_json():
        print_json({"Registry": host, "Username": username, "Status": status.status})
    else:
        say(status.status)


def _credentials(username: str, password: str, *, from_stdin: bool) -> tuple[str, str]:
    """User name and password, prompted for where they are not given.

    Raises:
        errors.Invalid: the password is empty
        errors.Denied: there is no terminal to ask on
    """
    if from_stdin and (password or not username):
        raise click.UsageError("--password-stdin needs --username, and excludes --password")
    username = username or prompt("Username")
    if from_stdin:
        password = sys.stdin.read().rstrip("\r\n")
    elif not password:
        password = prompt("Password", is_hidden=True)
    if not password:
        raise errors.Invalid("cannot log in: the password is empty")
    return username, password
