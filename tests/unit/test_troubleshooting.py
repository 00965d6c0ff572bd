"""The page of troubleshooting is compared with the sources: a text that is not in the code any more is noticed."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/moorage"
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
TEXTS = [text.replace(r"\|", "|") for text in re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)]

LEAST_LETTERS = 8
LEAST_SHARE = 0.5
"""How much of a text of the page must be in the code in these words; the rest may be what the code fills in."""

# Files whose errors stop an engine or a command before anything else can help: every one of them is in the page.
WHOLE = (
    "client/transport.py",
    "client/host.py",
    "client/answers.py",
    "client/failures.py",
    "client/execution.py",
    "assembly.py",
    "location.py",
    "shutdown.py",
    "containerd/supervisor.py",
    "engine/restore.py",
    "runtime_directory.py",
    "engine/store.py",
)
NOT_IN_THE_PAGE = {
    "lost moorage while the command ran": "as the other `lost moorage`",
    "cannot read PATH: it is no JSON object": "as `cannot read PATH: WHAT`",
    "cannot read PATH: it has no schema version": "the same",
    "cannot read PATH: it is of plugin NAME": "the same",
    "cannot finish the removal in PATH: there is another plugin NAME": "the same",
    "cannot write the record of plugin NAME: WHY": "the kernel's reason says it: a full disk",
    "cannot end the engine on PATH: process N does not end": "as for containerd's process",
    "cannot use PATH for containerd: WHY": "the data directory is refused first",
    "cannot start containerd: WHY": "its likely forms are there",
    "cannot remove PATH: WHY": "the kernel's reason says it",
}


class Text:
    """A text of the code. ``letters`` is how many it has of its own; what it fills in may be anything."""

    def __init__(self, node: ast.expr) -> None:
        pattern = _pattern(node).partition("\\\n")[0]
        self.pattern = re.compile(pattern, re.DOTALL)
        self.letters = _letters(pattern.replace(".*", ""))
        self._plain = re.sub(r"\\(.)", r"\1", pattern)

    def is_(self, text: str) -> bool:
        """Whether this is the text, or one that begins with it."""
        text = text.replace("containerd at PATH", "WHERE")  # which the code fills in
        enough = self.letters >= LEAST_SHARE * _letters(text)
        return (enough and self.pattern.fullmatch(text) is not None) or self._plain.startswith(text)


def _pattern(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(".*" if isinstance(part, ast.FormattedValue) else _pattern(part) for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub("%[sd]", ".*", re.escape(node.value))  # of a line of the log
    return ""


def _letters(text: str) -> int:
    return sum(letter.islower() for letter in text)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def texts_of_the_code() -> list[Text]:
    paths = [path for path in SOURCE.rglob("*.py") if "_proto" not in path.parts]
    nodes = [node for path in paths for node in ast.walk(tree(path)) if isinstance(node, ast.Constant | ast.JoinedStr)]
    return [text for text in map(Text, nodes) if text.letters >= LEAST_LETTERS]


def errors_of(path: Path) -> Iterator[Text]:
    """What a file raises by kind."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("errors.") and node.args:
            text = Text(node.args[0])
            if text.letters >= LEAST_LETTERS:
                yield text


def test_l02_each_text_of_the_page_is_one_of_the_code() -> None:
    assert len(TEXTS) > 80
    assert len(TEXTS) == len(set(TEXTS))
    unused = [text for text in TEXTS if not any(each.is_(text) for each in texts_of_the_code())]
    assert unused == [], "these are not in the code any more: take them out, or put in what stands there now"


def test_l02_the_page_has_every_error_that_stops_everything() -> None:
    for name in WHOLE:
        raised = list(errors_of(SOURCE / name))
        assert raised
        missing = [each.pattern.pattern for each in raised if not any(map(each.is_, [*TEXTS, *NOT_IN_THE_PAGE]))]
        assert missing == [], name
