"""Each command of Moorage in the table of habits exists, with the options that it shows."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from moorage.cli.main import COMMANDS, _moorage

PAGE = (Path(__file__).parents[2] / "docs/reference/habits.md").read_text()
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")][1:]


def test_h08_every_row_has_four_columns_and_ends_with_a_moorage_command() -> None:
    assert len(ROWS) > 35
    for row in ROWS:
        assert len(row) == 4, row
        assert row[3].startswith("`moorage "), row
    shown = {re.sub(r"--host \S+ ", "", row[3]).split()[1].strip("`") for row in ROWS}
    assert shown <= set(COMMANDS)


@pytest.mark.parametrize("line", [row[3].strip("`") for row in ROWS])
def test_h08_every_command_of_the_table_is_understood(line: str) -> None:
    words = shlex.split(line)[1:]
    with _moorage.make_context("moorage", list(words), resilient_parsing=True) as root:
        name, *rest = [*root._protected_args, *root.args]
        command = importlib.import_module(f"moorage.cli.cmd_{name}").command
        known = {each for part in command.params if isinstance(part, click.Option) for each in part.opts}
        given = {word.partition("=")[0] for word in rest if word.startswith("-")}
        clusters = {each for word in given if re.fullmatch(r"-[a-z]{2,}", word) for each in (f"-{c}" for c in word[1:])}
        assert {word for word in given if not re.fullmatch(r"-[a-z]{2,}", word)} | clusters <= known, line
