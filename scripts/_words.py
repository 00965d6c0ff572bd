#!/usr/bin/env python3
"""What ``scripts/lint`` runs to check words: names, documentation and messages in the terms of scripts/words.toml.

    scripts/_words.py [--room ROOM]    findings, of the whole tree or of one room

A room is a folder of src/moorage (``host``) or any path (``tests/support``, ``docs``). Standard library only.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARKDOWN_COLUMNS = 120
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PARTICIPLE = re.compile(r"[a-z]+(?:ing|ed)$")
_INLINE_CODE = re.compile(r"``.+?``|`[^`]+`|\]\([^)]*\)|<[^>]+>")


@dataclass(frozen=True, order=True)
class Finding:
    file: str
    line: int
    word: str
    say: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.word}: {self.say}"


@dataclass(frozen=True)
class Phrase:
    pattern: re.Pattern[str]
    say: str
    unless: re.Pattern[str] | None


@dataclass(frozen=True)
class Exemption:
    """A file, or the lines of it that match ``pattern``, where a listed word is right."""

    file: str
    pattern: re.Pattern[str]
    reason: str


class WordList:
    """scripts/words.toml."""

    def __init__(self, document: dict[str, object]) -> None:
        names = document["names"]
        modules = document["modules"]
        phrases = document["text"]
        exceptions = document.get("exceptions", [])
        assert isinstance(names, dict)
        assert isinstance(modules, dict)
        assert isinstance(phrases, list)
        assert isinstance(exceptions, list)
        self.names: dict[str, str] = names
        self.nouns = frozenset(modules["nouns"])
        self.metaphors = frozenset(modules["metaphors"])
        self.phrases = [
            Phrase(
                re.compile(each["not"], re.IGNORECASE),
                each["say"],
                re.compile(each["unless"], re.IGNORECASE) if "unless" in each else None,
            )
            for each in phrases
        ]
        self.any_phrase = re.compile("|".join(each.pattern.pattern for each in self.phrases), re.IGNORECASE)
        self.exceptions = [
            Exemption(each["file"], re.compile(each.get("line", "")), each["reason"]) for each in exceptions
        ]


def load(path: Path = ROOT / "scripts/words.toml") -> WordList:
    return WordList(tomllib.loads(path.read_text()))


def words_of(name: str) -> list[str]:
    """The words of an identifier, in lower case: ``_readAll_now`` is read, all, now."""
    return [word.lower() for word in _WORD.findall(name)]


# ------------------------------------------------------------------------------------------------------------ checks


def check_text(words: WordList, file: str, line: int, text: str) -> Iterator[Finding]:
    """Running text that starts at this line of a file."""
    if words.any_phrase.search(text) is None:
        return
    for number, row in enumerate(text.split("\n"), line):
        for phrase in words.phrases:
            if phrase.unless is not None and phrase.unless.search(row):
                continue
            for match in phrase.pattern.finditer(row):
                yield Finding(file, number, match[0], phrase.say)


def check_name(words: WordList, file: str, line: int, name: str) -> Iterator[Finding]:
    for word in words_of(name):
        say = words.names.get(word)
        if say is not None:
            yield Finding(file, line, f"{name} ({word})", say)


def check_module_name(words: WordList, file: str) -> Iterator[Finding]:
    path = Path(file)
    parts = [path.parent.name] if path.name == "__init__.py" else [path.stem]
    for word in words_of(parts[0]):
        if word in words.nouns:
            continue
        if _PARTICIPLE.fullmatch(word) or word in words.metaphors:
            yield Finding(file, 1, path.name, "name the file by a noun of the field")
        elif word in words.names:
            yield Finding(file, 1, path.name, words.names[word])


def check_markdown(words: WordList, file: str, text: str) -> Iterator[Finding]:
    for number, row in enumerate(text.split("\n"), 1):
        if len(row) > MARKDOWN_COLUMNS and not row.lstrip().startswith(("|", "http", "![")):
            yield Finding(file, number, f"{len(row)} columns", f"at most {MARKDOWN_COLUMNS}")
        yield from check_text(words, file, number, _INLINE_CODE.sub("``", row))


def check_shell(words: WordList, file: str, text: str) -> Iterator[Finding]:
    for number, row in enumerate(text.split("\n"), 1):
        start = re.search(r"(?:^|\s)#(?!!)", row)
        if start:
            yield from check_text(words, file, number, row[start.start() :])


class PythonFile:
    """The names and texts of one Python file."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.split("\n")
        self.names: list[tuple[int, str]] = []
        self.classes: list[tuple[int, str]] = []
        self.documentation: list[tuple[int, str]] = []
        self.messages: list[tuple[int, str]] = []
        spans: dict[int, list[tuple[int, int]]] = {}
        documentation: set[int] = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name):
                if isinstance(node.ctx, ast.Store):
                    self.names.append((node.lineno, node.id))
            elif isinstance(node, ast.Attribute):
                if isinstance(node.ctx, ast.Store):
                    self.names.append((node.lineno, node.attr))
            elif isinstance(node, ast.Constant):
                if isinstance(node.value, str | bytes):
                    self._mark(spans, node)
                    if isinstance(node.value, str) and id(node) not in documentation and " " in node.value:
                        self.messages.append((node.lineno, node.value))
            elif isinstance(node, ast.JoinedStr):
                self._mark(spans, node)
            elif isinstance(node, ast.Expr):
                if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                    documentation.add(id(node.value))
                    self.documentation.append((node.lineno, _source(self.lines, node.value)))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self.names.append((node.lineno, node.name))
            elif isinstance(node, ast.ClassDef):
                self.names.append((node.lineno, node.name))
                self.classes.append((node.lineno, node.name))
            elif isinstance(node, ast.arg):
                self.names.append((node.lineno, node.arg))
            elif isinstance(node, ast.alias) and node.asname is not None:
                self.names.append((node.lineno, node.asname))
        self.comments = list(self._comments(spans))

    def _mark(self, spans: dict[int, list[tuple[int, int]]], node: ast.expr) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        for line in range(node.lineno, node.end_lineno + 1):
            first = node.col_offset if line == node.lineno else 0
            last = node.end_col_offset if line == node.end_lineno else 1 << 30
            spans.setdefault(line, []).append((first, last))

    def _comments(self, spans: dict[int, list[tuple[int, int]]]) -> Iterator[tuple[int, str]]:
        for number, row in enumerate(self.lines, 1):
            at = row.find("#")
            while at >= 0:
                offset = len(row[:at].encode())
                if not any(first <= offset < last for first, last in spans.get(number, ())):
                    yield number, row[at:]
                    break
                at = row.find("#", at + 1)


def _source(lines: list[str], node: ast.expr) -> str:
    return "\n".join(lines[node.lineno - 1 : node.end_lineno])


def check_python(words: WordList, python: PythonFile) -> Iterator[Finding]:
    """Names, comments and docstrings; in src/ and scripts/ also the strings that may be shown."""
    seen: set[str] = set()  # a name counts once in a file
    for line, name in sorted(python.names):
        if name not in seen:
            seen.add(name)
            yield from check_name(words, python.file, line, name)
    texts = python.comments + python.documentation
    if not python.file.startswith("tests/"):
        texts = texts + python.messages
    for line, text in texts:
        text = re.sub(r"``.+?``", "``", text) if "``" in text else text
        yield from check_text(words, python.file, line, text)


def check_classes(files: list[PythonFile]) -> Iterator[Finding]:
    """Classes of src/ that have the name of another one. The kit is a package of its own: authors see nothing else."""
    first: dict[str, str] = {}
    for python in files:
        if python.file.startswith("src/") and not python.file.startswith("src/moorage/kit/"):
            for line, name in python.classes:
                if name in first:
                    yield Finding(python.file, line, f"class {name}", f"{first[name]} has one of this name")
                else:
                    first[name] = f"{python.file}:{line}"


# ------------------------------------------------------------------------------------------------------------- files


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return sorted({name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()})


def check_tree(words: WordList) -> list[Finding]:
    """All findings in the tree, sorted."""
    found: list[Finding] = []
    modules: list[PythonFile] = []
    for file in tracked_files():
        if "/_proto/" in file or "/rootfs/" in file or file in ("LICENSE",):
            continue
        if file.endswith(".md"):
            found += check_markdown(words, file, (ROOT / file).read_text())
        elif file.endswith(".py"):
            python = PythonFile(file, (ROOT / file).read_text())
            modules.append(python)
            found += check_python(words, python)
            if not Path(file).name.startswith("test_"):
                found += check_module_name(words, file)
        elif file.startswith(("scripts/", "packaging/", ".ci/", "bench/")) and Path(file).suffix in ("", ".service"):
            found += check_shell(words, file, (ROOT / file).read_text(errors="replace"))
    found += check_classes(modules)
    return sorted(each for each in found if not is_exempt(words, each))


def is_exempt(words: WordList, finding: Finding) -> bool:
    for each in words.exceptions:
        if each.file == finding.file:
            row = (ROOT / finding.file).read_text().split("\n")[finding.line - 1]
            if each.pattern.search(row):
                return True
    return False


def in_room(file: str, room: str) -> bool:
    room = room.rstrip("/")
    return any(
        file == each or file.startswith(f"{each}/") or file == f"{each}.py" for each in (room, f"src/moorage/{room}")
    )


def main(arguments: list[str]) -> int:
    if arguments and (len(arguments) != 2 or arguments[0] != "--room"):
        sys.exit(__doc__)
    found = [each for each in check_tree(load()) if not arguments or in_room(each.file, arguments[1])]
    for each in found:
        print(each)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
