"""The ``moorage`` command: finds its subcommands by name and imports only the one that is called."""

import importlib
import logging
import os
import signal
import sys

import click

from moorage import __version__, errors
from moorage._lib.journal import JournalFormatter, LineFormatter, is_journal, prefixed
from moorage.cli.terminal import indented, say_lines
from moorage.client import DEFAULT_HOST

__all__ = ("main",)

_COMMANDS = {
    "apply": "cmd_apply.command",
    "call": "cmd_call.command",
    "completion": "cmd_completion.command",
    "create": "cmd_create.command",
    "df": "cmd_packages.df",
    "disable": "cmd_lifecycle.disable",
    "doctor": "cmd_doctor.command",
    "down": "cmd_serve.down",
    "enable": "cmd_lifecycle.enable",
    "events": "cmd_look.events",
    "exec": "cmd_exec.command",
    "inspect": "cmd_look.inspect",
    "install": "cmd_install.install",
    "load": "cmd_packages.load",
    "logs": "cmd_look.logs",
    "ls": "cmd_look.list_all",
    "policy": "cmd_policy.command",
    "privileges": "cmd_install.privileges",
    "probe": "cmd_call.probe",
    "prune": "cmd_packages.prune",
    "push": "cmd_packages.push",
    "restart": "cmd_lifecycle.restart",
    "rm": "cmd_lifecycle.remove",
    "run": "cmd_run.command",
    "save": "cmd_packages.save",
    "serve": "cmd_serve.command",
    "set": "cmd_lifecycle.set_",
    "stats": "cmd_stats.command",
    "tag": "cmd_packages.tag",
    "upgrade": "cmd_install.upgrade",
    "version": "cmd_version.command",
}
"""Each command: the module and the name of it there."""


_STDERR = 2


class _Commands(click.Group):
    """A group whose commands are modules: importing them all would cost more than most commands take."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(".")
        command = getattr(importlib.import_module(f"moorage.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Run Docker-format managed plugins on containerd, without a Docker daemon.",
)
@click.option("--host", envvar="MOORAGE_HOST", default=DEFAULT_HOST, help="The engine's socket (unix://PATH).")
@click.option("--json", "as_json", is_flag=True, help="Print data as JSON, one document a line.")
@click.option("-v", "--verbose", is_flag=True, help="Say what happens inside, on standard error.")
@click.version_option(__version__, prog_name="moorage")
@click.pass_context
def _moorage(context: click.Context, host: str, as_json: bool, verbose: bool) -> None:
    logs = logging.StreamHandler(sys.stderr)
    formatter = JournalFormatter if _is_for_the_journal() else LineFormatter
    logs.setFormatter(formatter("%(levelname)s %(name)s: %(message)s" if verbose else "moorage: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, handlers=[logs])
    context.obj = as_json  # commands that talk to the engine look up the host by themselves


def main() -> None:
    """Run the command; failures are one sentence on standard error, status 1 (2 for a wrong call)."""
    _fill_standard_streams()
    try:
        if "_MOORAGE_COMPLETE" in os.environ:
            importlib.import_module("moorage.cli.completing").register()
        status = _moorage(prog_name="moorage", standalone_mode=False)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:  # whoever read our output has had enough
        _end_quietly()
        status = 128 + signal.SIGPIPE
    except OSError as error:
        what = f" {error.filename}" if error.filename else ""
        _complain(f"moorage: cannot go on{what}: {error.strerror or error}")
        status = 1
    except errors.MoorageError as error:
        _complain(f"moorage: {error}")
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _complain(text: str) -> None:
    shown = indented(text)
    say_lines(prefixed(logging.ERROR, shown) if _is_for_the_journal() else shown, err=True)


def _is_for_the_journal() -> bool:
    return is_journal(_STDERR, os.environ.get("JOURNAL_STREAM"))


def _end_quietly() -> None:
    # else Python complains at its end that it cannot write out what is left
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fill_standard_streams() -> None:
    # One that was closed would become the next file to be opened: a lock, a database of containerd, with our output.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
