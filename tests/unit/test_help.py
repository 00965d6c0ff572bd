"""The help of every command: as docker's and podman's are written, and as wide as the terminal."""

import importlib
import re
from collections.abc import Iterator

import click
import pytest

from moorage.cli.main import COMMANDS, _moorage
from moorage.cli.parameters import parse_duration, parse_label, parse_restart

CLICK_NAMES = re.compile(r"\b(TEXT|INTEGER|FLOAT|RANGE)\b")
"""How click names a value whose option does not name it."""


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        found = importlib.import_module(f"moorage.cli.cmd_{name}").command
        yield name, found
        if isinstance(found, click.Group):
            yield from ((f"{name} {each}", found.commands[each]) for each in found.commands)


ALL = dict(commands())


@pytest.mark.parametrize("name", ALL)
def test_h07_help_names_each_value_and_fits_the_terminal(name: str) -> None:
    for columns in (80, 200):
        context = click.Context(ALL[name], info_name=f"moorage {name}", terminal_width=columns)
        text = ALL[name].get_help(context)
        assert all(len(line) <= columns for line in text.splitlines()), text
        assert CLICK_NAMES.findall(text) == [], text


@pytest.mark.parametrize("name", ALL)
def test_h07_help_begins_with_what_the_command_does_and_ends_its_sentences(name: str) -> None:
    text = str(ALL[name].help)
    assert text[0].isupper()
    assert text.endswith(".")
    options = [each for each in ALL[name].params if isinstance(each, click.Option) and each.help and not each.hidden]
    assert [each.help for each in options if not each.help or not each.help[0].isupper()] in ([], [_LOWER])


_LOWER = "private (started by the engine), system, or a socket; fixed at the first start.  [default: private]"


def test_h07_dockers_other_names_of_commands_are_known() -> None:
    with _moorage.make_context("moorage", ["list"], resilient_parsing=True) as context:
        assert [_moorage.get_command(context, each).name for each in ("list", "remove")] == ["ls", "rm"]  # type: ignore[union-attr]
        assert _moorage.get_command(context, "lst") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no", ("never", None)),
        ("never", ("never", None)),
        ("always", ("always", None)),
        ("unless-stopped", ("always", None)),
        ("on-failure", ("on-failure", None)),
        ("on-failure:5", ("on-failure", 5)),
    ],
)
def test_h07_restart_policies_may_be_in_dockers_words(text: str, found: tuple[str, int | None]) -> None:
    assert parse_restart(text) == found


@pytest.mark.parametrize("text", ["", "on-failure:", "on-failure:x", "always:3", "sometimes", "on-failure:-1"])
def test_h07_other_restart_policies_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not one of no, always, on-failure"):
        parse_restart(text)


@pytest.mark.parametrize(("text", "pair"), [("a=b", ("a", "b")), ("a", ("a", "")), ("a=b=c", ("a", "b=c"))])
def test_h01_labels_are_written_as_docker_has_them(text: str, pair: tuple[str, str]) -> None:
    assert parse_label(text) == pair


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("1m30s", 90.0), ("500ms", 0.5), ("1.5h", 5400.0), ("1d", 86400.0)]
)
def test_h01_durations_are_written_as_docker_has_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "30x", "1m 30s", "-5s", "1m30"])
def test_h01_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
