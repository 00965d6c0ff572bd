"""The page of commands has every command and every option, and no other."""

import re
from pathlib import Path

import click
from _command_reference import command_contexts

PAGE = (Path(__file__).parents[2] / "docs/reference/commands.md").read_text()


def test_l02_the_page_has_every_command_with_its_options() -> None:
    sections = {
        re.sub(r" [^a-z].*", "", heading): text
        for heading, text in re.findall(r"^## (moorage .*)\n((?:(?!^## ).*\n?)*)", PAGE, re.MULTILINE)
    }
    contexts = {context.command_path: context.command for context in command_contexts()}
    assert sorted(sections) == sorted(contexts)
    for path, command in contexts.items():
        options = {
            each
            for part in command.params
            if isinstance(part, click.Option) and not part.hidden
            for each in (*part.opts, *part.secondary_opts)
        }
        rows = [line for line in sections[path].splitlines() if line.startswith("| `")]
        assert {each for row in rows for each in re.findall(r"`(-[-a-zA-Z]+)`", row.split("|")[1])} == options, path
        if not isinstance(command, click.Group):
            assert f"    {path}" in sections[path].replace("moorage --json", "moorage")
