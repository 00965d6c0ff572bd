"""The page about security names tests that exist, and has each finding."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()


def named_tests() -> list[tuple[str, str]]:
    """File and name of each test in the page; a name without a file is in the one before it."""
    found: list[tuple[str, str]] = []
    for file, name in re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", PAGE):
        found.append((file or found[-1][0], name))
    return found


def test_every_test_that_the_page_names_exists() -> None:
    missing = [name for file, name in named_tests() if f"def {name}(" not in (ROOT / file).read_text()]
    assert not missing


def test_every_finding_has_a_line_and_a_test() -> None:
    rows = {f"S{number:02}" for number in range(1, 14)}
    lines = dict(re.findall(r"^\| (S\d\d) \|(.*)$", PAGE, re.MULTILINE))
    assert set(lines) == rows
    assert all("`tests/" in line for line in lines.values())


def test_every_file_that_the_page_names_exists() -> None:
    assert all((ROOT / file).is_file() for file in re.findall(r"`(tests/[\w/]+\.py)", PAGE))
