"""``moorage doctor``: what is missing or wrong on this machine, and how to mend it."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import click

from moorage import errors
from moorage.cli.target import given_socket, locate_engine
from moorage.cli.terminal import indented, print_json, say_lines
from moorage.client import MoorageClient
from moorage.location import locate

_PATIENCE = 5.0  # seconds for each step of the engine's answer


@click.command(
    name="doctor",
    help="Look for what is missing or wrong on this machine and with its engine. Exit status 1 if anything is.",
)
@click.pass_obj
def command(as_json: bool) -> int:
    """Print the findings as lines, or as one JSON object a line."""
    from moorage.engine.doctor import examine
    from moorage.engine.doctor_engine import examine_engine
    from moorage.engine.doctor_security import examine_security
    from moorage.engine.findings import Verdict
    from moorage.engine.host_security import HostSecurity

    try:
        location = locate_engine()
    except errors.MoorageError:  # the socket is looked at all the same; of its directories nothing is known
        location = replace(locate(None, None), socket=given_socket() or Path())
    data, state, socket = location.root, location.exec_root, given_socket() or location.socket

    def ask() -> Any:
        return MoorageClient(str(socket), _PATIENCE).info()

    status = 0
    for finding in chain(examine(data, state), examine_engine(data, socket, ask), examine_security(HostSecurity())):
        if finding.verdict is Verdict.BAD:
            status = 1
        if as_json:
            line = {"subject": finding.subject, "verdict": finding.verdict.value, "text": finding.text}
            print_json({**line, "advice": finding.advice})
            continue
        say_lines(indented(f"{finding.verdict.value:<8} {finding.subject}: {finding.text}"))
        if finding.advice:
            say_lines(f"{'':<8} → {indented(finding.advice)}")
    return status
