"""The page of commands has every command and every option, and no other."""

import importlib
import re
from pathlib import Path

import click

from moorage.cli.main import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs/reference/commands.md").read_text()


def test_l02_the_page_has_every_command_with_its_options() -> None:
    sections = {
        heading.split()[1]: text
        for heading, text in re.findall(r"^## (moorage .*)\n((?:(?!^## ).*\n?)*)", PAGE, re.MULTILINE)
    }
    assert sorted(sections) == sorted(COMMANDS)
    for name in COMMANDS:
        command = importlib.import_module(f"moorage.cli.cmd_{name}").command
        options = {
            each
            for part in command.params
            if isinstance(part, click.Option) and not part.hidden
            for each in (*part.opts, *part.secondary_opts)
        }
        rows = [line for line in sections[name].splitlines() if line.startswith("| `")]
        assert {each for row in rows for each in re.findall(r"`(-[-a-zA-Z]+)`", row.split("|")[1])} == options, name
        assert f"    moorage {name}" in sections[name].replace("moorage --json", "moorage")
