"""``moorage doctor``: checks of this host and its engine."""

from dataclasses import replace
from os.path import abspath
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moorage import errors
from moorage.cli.context import is_json, json_option
from moorage.cli.engine_location import given_socket, locate_engine
from moorage.cli.terminal import indented, print_json, say_lines
from moorage.location import locate
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.api.schema.system import SystemInfo

_TIMEOUT = DEFAULT.engine_answer  # seconds for each step of the engine's answer


@click.command(
    name="doctor",
    help="Check this host and its engine for problems. The exit status is 1 if there is one.",
)
@json_option
def command() -> int:
    """Print the findings as lines, or as one JSON object a line."""
    from moorage.doctor.all_checks import ALL_CHECKS
    from moorage.doctor.check import CheckTarget, run_checks
    from moorage.doctor.findings import Verdict

    try:
        location = locate_engine()
    except errors.MoorageError:  # the socket is checked all the same; its directories are unknown
        location = replace(locate(None, None), socket=given_socket() or Path())
    socket = given_socket() or location.socket

    def get_info() -> "SystemInfo":
        from moorage.client import MoorageClient

        return MoorageClient(str(socket), _TIMEOUT).info()

    target = CheckTarget(Path(abspath(location.root)), Path(abspath(location.exec_root)), socket, get_info)

    status = 0
    for finding in run_checks(ALL_CHECKS, target):
        if finding.verdict is Verdict.WRONG:
            status = 1
        if is_json():
            line = {"subject": finding.subject, "verdict": finding.verdict.value, "text": finding.text}
            print_json({**line, "advice": finding.advice})
            continue
        say_lines(indented(f"{finding.verdict.value:<8} {finding.subject}: {finding.text}"))
        if finding.advice:
            say_lines(f"{'':<8} → {indented(finding.advice)}")
    return status
