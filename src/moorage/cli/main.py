"""The ``moorage`` command: finds its subcommands by name and imports only the one that is called."""

import importlib
import logging
import os
import sys
from typing import Any

import click
from click.core import ParameterSource

from moorage import __version__, errors
from moorage._lib.imports import collector_paused
from moorage._lib.journal import JournalFormatter, LineFormatter
from moorage.cli.quick.status import fill_standard_streams, is_for_the_journal, report_failure
from moorage.client.host import DEFAULT_HOST

__all__ = ("COMMANDS", "main")

COMMANDS = (
    "apply",
    "build",
    "call",
    "completion",
    "context",
    "cp",
    "create",
    "df",
    "disable",
    "doctor",
    "down",
    "enable",
    "events",
    "exec",
    "export",
    "inspect",
    "install",
    "kill",
    "load",
    "login",
    "logout",
    "logs",
    "ls",
    "migrate",
    "new",
    "policy",
    "privileges",
    "probe",
    "prune",
    "publish",
    "push",
    "rename",
    "restart",
    "rm",
    "run",
    "save",
    "serve",
    "set",
    "stats",
    "tag",
    "test",
    "top",
    "ui",
    "unpublish",
    "upgrade",
    "version",
    "volume",
    "wait",
)
"""Each is ``command`` in the module ``cmd_NAME``."""

_HIDDEN = ("dial-stdio",)
"""Commands that other programs call, not people."""

_ALIASES = {"list": "ls", "remove": "rm"}
"""Docker's other names of commands."""


class _OutputClosed(Exception):
    """A BrokenPipeError, which click would turn into status 1."""


class _Commands(click.Group):
    """A group whose commands are modules: importing them all would cost more than most commands take."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises: _OutputClosed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _OutputClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        cmd_name = _ALIASES.get(cmd_name, cmd_name)
        if cmd_name not in COMMANDS and cmd_name not in _HIDDEN:
            return None
        with collector_paused():
            command = importlib.import_module(f"moorage.cli.cmd_{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return _with_json(command)


def _with_json(command: click.Command) -> click.Command:
    """The command with the option --json, also where its help does not list it: it is taken anywhere on the line."""
    from moorage.cli.context import note_json

    if not any("--json" in each.opts for each in command.params):
        option = click.Option(["--json"], is_flag=True, expose_value=False, hidden=True, callback=note_json)
        command.params.append(option)
    return command


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Run Docker-format managed plugins on containerd, without a Docker daemon.",
)
@click.option(
    "--host",
    envvar="MOORAGE_HOST",
    default=DEFAULT_HOST,
    help="Engine to connect to: unix://PATH, or ssh://[USER@]MACHINE[:PORT][/PATH].",
)
@click.option("--context", metavar="NAME", help="Context to use, by its name; see moorage context.")
@click.option("--json", "as_json", is_flag=True, help="Print data as JSON, one document a line.")
@click.option(
    "-v", "--verbose", count=True, help="Log each step on standard error; -vv logs those of the libraries, too."
)
@click.version_option(__version__, prog_name="moorage")
@click.pass_context
def _moorage(click_context: click.Context, host: str, context: str | None, as_json: bool, verbose: int) -> None:
    if host != DEFAULT_HOST and context and click_context.get_parameter_source("host") is ParameterSource.COMMANDLINE:
        raise click.UsageError("give --host or --context, not both")
    logs = logging.StreamHandler(sys.stderr)
    formatter = JournalFormatter if is_for_the_journal() else LineFormatter
    logs.setFormatter(formatter("%(levelname)s %(name)s: %(message)s" if verbose else "moorage: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose > 1 else logging.WARNING, handlers=[logs])
    if verbose:
        logging.getLogger("moorage").setLevel(logging.DEBUG)
    if as_json:
        click_context.meta["json"] = True


def main() -> None:
    """Run the command; failures are one sentence on standard error, status 1 (2 for a wrong call)."""
    fill_standard_streams()
    try:
        if "_MOORAGE_COMPLETE" in os.environ:
            importlib.import_module("moorage.cli.completion").register()
        status = _moorage(prog_name="moorage", standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort:
        status = 130
    except _OutputClosed:
        status = report_failure(BrokenPipeError())
    except (KeyboardInterrupt, OSError, errors.MoorageError) as error:
        status = report_failure(error)
    sys.exit(status if isinstance(status, int) else 0)
