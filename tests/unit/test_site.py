"""The navigation of the documentation has every page; tests/peers/test_site.py builds the site."""

import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
from _docs import ELSEWHERE, navigation, public_modules

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def linked() -> list[Path]:
    text = (DOCS / "index.md").read_text()
    return [(DOCS / link).resolve() for _, links in navigation(text) for link in links]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = {path for path in DOCS.rglob("*.md") if path.parent.name != "adr"}
    pages |= {DOCS / "adr/index.md", *ROOT.glob("examples/*/README.md"), *(ROOT / name for name in ELSEWHERE)}
    pages.remove(DOCS / "index.md")
    assert Counter(linked()) == Counter(pages), "docs/index.md lists each page in one of its sections"


def test_no_section_of_the_navigation_is_empty() -> None:
    sections = dict(navigation((DOCS / "index.md").read_text()))
    assert len(sections) >= 5
    assert all(sections.values())


def test_each_decision_has_a_number_and_a_title_of_its_own() -> None:
    decisions = sorted(path for path in (DOCS / "adr").glob("*.md") if path.name != "index.md")
    assert [path.name for path in decisions if not re.match(r"\d{4}-[a-z0-9-]+\.md$", path.name)] == []
    numbers = Counter(path.name[:4] for path in decisions)
    assert [number for number, count in numbers.items() if count > 1] == []
    titles = Counter(path.read_text().partition("\n")[0] for path in decisions)
    assert [title for title, count in titles.items() if count > 1 or not title.startswith("# ")] == []


def test_the_reference_of_python_has_the_surface() -> None:
    assert {"moorage", "moorage.containerd", "moorage.executor", "moorage.errors"} <= set(public_modules())


@pytest.mark.parametrize("name", public_modules())
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    values = {each: getattr(module, each) for each in module.__all__}
    undescribed = [
        each
        for each, value in values.items()
        if getattr(value, "__module__", "").startswith("moorage") and callable(value) and not value.__doc__
    ]
    assert undescribed == []


def test_every_picture_of_a_page_is_in_the_repository() -> None:
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / link).is_file(), f"{page.name} shows {link}"
            assert "http" not in link


def test_the_readme_is_short_and_shows_first_what_happens() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    text = "\n".join(lines)
    order = ["images/overview.svg", "images/terminal.svg", "## What it is for", "scripts/demo ", "scripts/test "]
    positions = [text.index(each) for each in order]
    assert positions == sorted(positions)
