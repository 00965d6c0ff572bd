"""The manual pages, as man shows them."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from _command_reference import command_contexts

from moorage.cli.main import COMMANDS, _moorage

ROOT = Path(__file__).resolve().parents[2]
PAGES = {context.command_path.replace(" ", "-"): context.command for context in command_contexts()}
NAMES = ["moorage", *PAGES]


def run(*command: str, **more: str) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MAN_KEEP_FORMATTING": "", **more}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man") / "made"
    run("scripts/man", str(folder), PYTHON=sys.executable, SOURCE_DATE_EPOCH="86400")
    return folder


def command(name: str) -> click.Command:
    return _moorage if name == "moorage" else PAGES[name]


def words(text: str) -> str:
    return " ".join(text.split())


def test_there_is_a_page_for_the_program_and_for_each_command(pages: Path) -> None:
    assert sorted(path.name for path in pages.iterdir()) == sorted(f"{name}.1" for name in NAMES)


@pytest.mark.needs("man", "groff")
@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_what_help_says_and_no_formatter_complains(pages: Path, name: str) -> None:
    path = str(pages / f"{name}.1")
    run("groff", "-man", "-ww", "-Tutf8", "-z", path)
    shown = words(run("man", "--warnings=w", "-l", path))
    assert words(command(name).help or "") in shown
    for option in command(name).params:
        if isinstance(option, click.Option):
            assert ", ".join(option.opts) in shown
            assert words(option.help or "") in shown
    assert "-h, --help" in shown
    assert "1970-01-02" in shown


@pytest.mark.needs("man")
def test_the_programs_page_has_every_command_and_leads_to_its_page(pages: Path) -> None:
    shown = words(run("man", "-l", str(pages / "moorage.1")))
    for name in COMMANDS:
        assert f"{name} {words(command(f'moorage-{name}').help or '')}" in shown
        assert f"moorage-{name}(1)" in shown


@pytest.mark.needs("man")
def test_whatis_can_read_each_page(pages: Path) -> None:
    for path in pages.iterdir():
        said = run("lexgrog", str(path))
        assert re.search(rf': "{path.stem} - [A-Z]', said), said


@pytest.mark.needs("mandoc")
@pytest.mark.parametrize("name", NAMES)
def test_mandoc_has_nothing_to_say(pages: Path, name: str) -> None:
    run("mandoc", "-T", "lint", "-W", "warning", str(pages / f"{name}.1"))


@pytest.mark.needs("man")
def test_what_roff_would_take_for_its_own_is_shown_as_it_stands(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        escaped = importlib.import_module("_man").escaped
    finally:
        sys.path.pop(0)
    texts = [".so /etc/passwd", "'br", r"C:\fBold\fR \n[.l]", "a-b --c '~^`\" don't", "naïve → ✓"]
    page = tmp_path / "x.1"
    page.write_text(".TH X 1\n.nh\n" + "".join(f".PP\n{escaped(text)}\n" for text in texts))
    shown = words(run("man", "--warnings=w", "-l", str(page)))
    for text in texts:
        assert text in shown
