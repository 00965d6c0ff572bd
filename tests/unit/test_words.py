import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_words", ROOT / "scripts/_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_words"] = module
    spec.loader.exec_module(module)
    return module


def found(words: ModuleType, file: str, text: str) -> list[tuple[int, str]]:
    listed = words.load()
    if file.endswith(".md"):
        findings = words.check_markdown(listed, file, text)
    elif file.endswith(".py"):
        findings = words.check_python(listed, words.PythonFile(file, text))
    else:
        findings = words.check_shell(listed, file, text)
    return sorted((each.line, each.word) for each in findings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def _tell_all(): pass", [(1, "_tell_all (tell)")]),
        ("class LogDesk: pass", [(1, "LogDesk (desk)")]),
        ("def run(\n    wish): pass", [(2, "wish (wish)")]),
        ("self.is_held = 1\nself.is_held = 2", [(1, "is_held (held)")]),
        ("import os as places", [(1, "places (places)")]),
        ("storytelling = teller_id = 1", [(1, "teller_id (teller)")]),
        ('x = "a#told"  # is told', [(1, "told")]),
        ('def run():\n    """One.\n\n    Kept until then.\n    """', [(4, "Kept")]),
        ('raise Error("cannot go on: nobody")', [(1, "go on"), (1, "nobody")]),
        ('raise Error(f"cannot read {x}: it is away")', [(1, "away")]),
        ('KEY = "told"', []),  # a key, no sentence
        ("# holds the lock until the lease is released", []),
        ('"""``wish`` is a name."""', []),
    ],
)
def test_python_names_texts_and_messages_are_checked(
    words: ModuleType, text: str, expected: list[tuple[int, str]]
) -> None:
    assert found(words, "src/moorage/x.py", text) == expected


def test_strings_of_tests_are_not_checked(words: ModuleType) -> None:
    assert found(words, "tests/unit/test_x.py", 'x = "it was told"  # told') == [(1, "told")]


def test_documents_are_checked_but_for_their_code(words: ModuleType) -> None:
    text = "A `wish`.\nIt was told.\n" + "x" * 121 + "\n| " + "x" * 121 + " |\n"
    assert found(words, "docs/x.md", text) == [(2, "told"), (3, "121 columns")]


def test_shell_comments_are_checked(words: ModuleType) -> None:
    assert found(words, "scripts/x", "#!/bin/bash\necho told # told\n") == [(2, "told")]


@pytest.mark.parametrize(
    ("file", "is_found"),
    [
        ("src/moorage/engine/restoring.py", True),
        ("src/moorage/engine/shared.py", True),
        ("src/moorage/adding/__init__.py", True),
        ("tests/support/machinery.py", True),
        ("src/moorage/engine/arrivals.py", True),
        ("src/moorage/embedding.py", False),
        ("src/moorage/plugins/settings.py", False),
        ("src/moorage/plugins/spec.py", False),
    ],
)
def test_files_are_named_by_nouns_of_the_field(words: ModuleType, file: str, is_found: bool) -> None:
    assert bool(list(words.check_module_name(words.load(), file))) is is_found


def test_two_classes_of_one_name_are_found(words: ModuleType) -> None:
    files = [words.PythonFile(f"src/moorage/{name}.py", "class Run: pass") for name in "ab"]
    assert [(each.file, each.word) for each in words.check_classes(files)] == [("src/moorage/b.py", "class Run")]


def test_every_expression_matches_and_says_something_else(words: ModuleType) -> None:
    listed = words.load()
    assert all(each.say and each.pattern.search(each.say) is None for each in listed.phrases)
    assert all(say and name not in words.words_of(say) for name, say in listed.names.items())
    assert all(each.reason for each in listed.exceptions)


def test_a_room_without_findings_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/_words.py", "--room", "no-such-room"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
