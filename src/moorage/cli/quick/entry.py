"""The program ``moorage``: a quick command where the command line is a plain one, else ``cli.main``."""

import os
import sys

from moorage.cli.quick.arguments import parse
from moorage.cli.quick.status import fill_standard_streams, report_failure

__all__ = ("main", "run_quick")


def main() -> None:
    """Run the command; failures are one sentence on standard error, status 1 (2 for a wrong call)."""
    status = run_quick(sys.argv[1:])
    if status is None:
        from moorage.cli.main import main as run_any

        run_any()
    sys.exit(status)


def run_quick(arguments: list[str]) -> int | None:
    """Run a command; the exit status, or None where ``cli.main`` has to run it, and nothing was done or printed."""
    call = parse(arguments, os.environ)
    if call is None:
        return None
    fill_standard_streams()
    from moorage.cli.quick.commands import COMMANDS
    from moorage.client.local_http import UnknownServer

    try:
        return COMMANDS[call.command](call)
    except UnknownServer:
        return None
    except BaseException as error:  # noqa: BLE001 - what is not reported is raised again
        return report_failure(error)
