"""What contributors' tools read is well formed, and what CONTRIBUTING.md and docs/release.md name exists."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_there_are_forms_for_issues() -> None:
    assert {path.name for path in FORMS} >= {"bug.yml", "feature.yml"}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_for_issues_has_what_a_forge_requires(form: Path) -> None:
    document = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= set(document)
    ids = [part["id"] for part in document["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids)) > 0
    for part in document["body"]:
        assert part["type"] in KINDS
        assert part["attributes"]["value" if part["type"] == "markdown" else "label"]


def test_the_hook_of_pre_commit_is_the_lint() -> None:
    document = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in document["repos"]] == ["local"], "nothing is fetched from elsewhere"
    assert [hook["entry"] for repo in document["repos"] for hook in repo["hooks"]] == ["scripts/lint"]


def test_the_editorconfig_agrees_with_ruff() -> None:
    parser = configparser.ConfigParser()
    parser.read_string("[head]\n" + (ROOT / ".editorconfig").read_text())
    assert parser["*"]["max_line_length"] == "120"
    assert "line-length = 120" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/release.md", "docs/reference/support.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"(?:^    |`)((?:src|tests|scripts|docs|proto|packaging|\.ci)/[\w./-]*[\w/])", text, re.M)
    assert len(named) > 2
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_the_form_of_a_pull_request_mentions_tests_and_changelog() -> None:
    text = (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text()
    assert all(word in text for word in ("scripts/test", "scripts/lint", "CHANGELOG.md", "docs/troubleshooting.md"))
