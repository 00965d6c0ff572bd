"""``moorage ui``: a page in the browser."""

from pathlib import Path

import click

from moorage._lib.imports import collector_paused, without_certificates
from moorage.cli.context import is_json, json_option
from moorage.cli.engine_location import host_of
from moorage.cli.terminal import print_json, say


@click.command(
    name="ui",
    help="Serve a page in the browser until Ctrl-C: plugins with their usage, output, events, volumes and disk, and "
    "buttons to change them. It prints a link with the token that the page requires.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    envvar="MOORAGE_UI_LISTEN",
    default="127.0.0.1:8377",
    show_default=True,
    help="Address to listen on, of this machine only; port 0 for any that is free.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="File with the token, created if it is missing; without it there is a new token each time.",
)
@click.option(
    "--origin", metavar="URL", default="", help="Origin of a proxy that browsers connect to instead, https://HOST."
)
@click.option("--until-eof", is_flag=True, hidden=True)
@json_option
def command(listen: str, token_file: Path | None, origin: str, until_eof: bool) -> int:
    """Serve; the exit status."""
    import logging

    with collector_paused(), without_certificates():
        import anyio

        from moorage.ui.service import PageOptions, run_page

    steps = logging.getLogger("moorage")
    host = host_of(click.get_current_context())
    as_json = is_json()

    def report(url: str, token: str) -> None:
        if until_eof:
            steps.info("the page is at %s, its token in %s", url, token_file)
        elif as_json:
            print_json({"Url": url, "Token": token, "Link": f"{url}/#token={token}"})
        else:
            say(f"{url}/#token={token}")

    if until_eof:
        steps.setLevel(min(logging.INFO, steps.getEffectiveLevel()))
    options = PageOptions(host, listen, token_file, origin, until_eof)
    return anyio.run(run_page, options, report, backend_options={"use_uvloop": True})
