"""The page about development names files that exist: where changes belong, and the scripts."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/development.md").read_text()
SECTION = PAGE.partition("## Where is the room for my change?\n")[2].partition("\n## ")[0]
CHANGES, ADDITIONS = re.split(r"^What else", SECTION, flags=re.M)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_at_least_ten_changes_have_one_file_each() -> None:
    changes = rows(CHANGES)
    assert len(changes) >= 10
    files = [re.fullmatch(r"`([\w/]+\.py)`", row[1]) for row in changes]
    assert None not in files
    names = [each[1] for each in files if each]
    assert [name for name in names if not (ROOT / "src/moorage" / name).is_file()] == []
    assert len(set(names)) == len(names)
    assert len({name.partition("/")[0] for name in names}) >= 10, "each in another room"


def test_every_test_and_file_that_the_section_names_exists() -> None:
    named = set(re.findall(r"`([\w/]+(?:\.(?:py|md)|/))`", SECTION))
    assert len(named) > 20
    roots = (ROOT, ROOT / "src/moorage")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


def test_every_script_is_on_the_page() -> None:
    scripts = {path.name for path in (ROOT / "scripts").iterdir() if path.is_file() and "." not in path.name}
    named = set(re.findall(r"`scripts/(\w+)", PAGE))
    assert scripts - named == {"confinement", "faults", "mutate", "simulate"}, "or on docs/reliability.md, security.md"
    for name in scripts - named:
        assert f"scripts/{name}" in "".join(
            (ROOT / f"docs/{page}.md").read_text() for page in ("reliability", "security")
        )


def test_every_module_that_the_architecture_names_exists() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    modules = {path.relative_to(ROOT / "src/moorage").as_posix() for path in (ROOT / "src/moorage").rglob("*.py")}
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    assert len(named) > 15
    assert [name for name in named if not any(f"/{module}".endswith(f"/{name}") for module in modules)] == []
