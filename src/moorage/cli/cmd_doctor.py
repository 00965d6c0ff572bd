"""``moorage doctor``: what is missing or wrong on this machine, and how to mend it."""

import json
import os
from pathlib import Path

import click


@click.command(name="doctor", help="Look for what is missing or wrong on this machine. Exit status 1 if anything is.")
@click.pass_obj
def command(as_json: bool) -> int:
    """Print the findings as lines, or as one JSON object a line."""
    from moorage.engine.doctor import Verdict, examine

    data = Path(os.environ.get("MOORAGE_ROOT") or "/var/lib/moorage")
    state = Path(os.environ.get("MOORAGE_EXEC_ROOT") or "/run/moorage")
    status = 0
    for finding in examine(data, state):
        if finding.verdict is Verdict.BAD:
            status = 1
        if as_json:
            line = {"subject": finding.subject, "verdict": finding.verdict.value, "text": finding.text}
            click.echo(json.dumps({**line, "advice": finding.advice}))
            continue
        click.echo(f"{finding.verdict.value:<8} {finding.subject}: {finding.text}")
        if finding.advice:
            click.echo(f"{'':<8} → {finding.advice}")
    return status
