"""What ``help`` shows of the exported names: texts, failures by kind, and the meaning of what a constructor takes."""

import ast
import builtins
import importlib
import inspect
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

import pytest

from moorage import errors

SOURCE = Path(__file__).resolve().parents[2] / "src"

LAZY = ("moorage", "moorage.containerd", "moorage.kit")

type_of_function = ast.FunctionDef | ast.AsyncFunctionDef


def packages() -> list[str]:
    """Every package that exports something."""
    found = []
    for path in sorted((SOURCE / "moorage").rglob("__init__.py")):
        if "_proto" not in path.parts:
            name = ".".join(path.parent.relative_to(SOURCE).parts)
            if getattr(importlib.import_module(name), "__all__", ()):
                found.append(name)
    return found


class Definition(NamedTuple):
    """A class or a function, as it is written."""

    name: str
    node: ast.ClassDef | type_of_function

    @property
    def text(self) -> str:
        return ast.get_docstring(self.node) or ""


def is_function(node: ast.AST) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, type_of_function)


def exported(package: str) -> Iterator[Definition]:
    """The classes and functions that a package exports, and the public methods of these classes."""
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)) or not value.__module__.startswith("moorage"):
            continue
        path = inspect.getsourcefile(importlib.import_module(value.__module__))
        assert path is not None
        for node in ast.parse(Path(path).read_text()).body:
            if isinstance(node, ast.ClassDef) or is_function(node):
                if node.name != value.__name__:
                    continue
                yield Definition(f"{package}.{name}", node)
                if isinstance(node, ast.ClassDef):
                    for each in node.body:
                        if is_function(each) and not each.name.startswith("_"):
                            yield Definition(f"{package}.{name}.{each.name}", each)


KIND = re.compile(r"((?:[a-z]+\.)?)([A-Z]\w+): \S.*")
KINDS = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}


def problems_of_raises(text: str) -> Iterator[str]:
    """What is wrong with "Raises:": it names one kind, or is a section with a line for each: ``Kind: condition``."""
    for part in re.split(r"\bRaises:", text)[1:]:
        part = re.split(r"\n\n|\n\s*Source:", part)[0]
        if not part.startswith("\n"):
            named = {word for word in re.findall(r"\w+", part) if word in KINDS}
            if len(named) > 1:
                yield f"'Raises:' names {', '.join(sorted(named))}: give each kind its line"
            continue
        for row in part.split("\n")[1:]:
            match = KIND.fullmatch(row.strip())
            is_known = match is not None and (
                match[1] not in ("", "errors.") or match[2] in KINDS or hasattr(builtins, match[2])
            )
            if not row.startswith("     ") and not is_known:
                yield f"not 'Kind: condition': {row.strip()!r}"


def arguments(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """What the constructor takes, and the texts that may explain it: of the class, of ``__init__``, of a field."""
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    if bases & {"Protocol", "Enum", "IntEnum", "StrEnum", "Exception"}:
        return
    text = ast.get_docstring(node) or ""
    for each in node.body:
        if isinstance(each, type_of_function) and each.name == "__init__":
            for argument in [*each.args.posonlyargs, *each.args.args[1:], *each.args.kwonlyargs]:
                yield argument.arg, text + (ast.get_docstring(each) or "")
    if "Struct" in bases:
        for each, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                is_described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                yield each.target.id, f"``{each.target.id}``" if is_described else text


def unexplained(node: ast.ClassDef) -> list[str]:
    return [name for name, text in arguments(node) if not re.search(rf"``{name}``|^ *{name}: ", text, re.MULTILINE)]


def problems(package: str) -> Iterator[str]:
    for definition in exported(package):
        if not definition.text:
            yield f"{definition.name}: has no docstring"
        for problem in problems_of_raises(definition.text):
            yield f"{definition.name}: {problem}"
        if isinstance(definition.node, ast.ClassDef):
            yield from (f"{definition.name}: does not explain {name}" for name in unexplained(definition.node))


@pytest.mark.parametrize("package", packages())
def test_what_is_exported_has_texts_failures_by_kind_and_explained_arguments(package: str) -> None:
    found = list(problems(package))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", LAZY)
def test_help_shows_the_names_of_a_lazy_package_and_their_texts(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__)
    shown = pydoc.plain(pydoc.render_doc(module))
    for name in module.__all__:
        assert re.search(rf"^    {name}: \S", module.__doc__ or "", re.MULTILINE) or name == "__version__"
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__ is not None
            assert value.__doc__.strip().split("\n")[0] in shown


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One.", 0),
        ("One. Raises: NotFound without a record.", 0),
        ("One.\n\nRaises: NotFound without a record.\nRaises: Invalid for any other.\nSource: Conflict.", 0),
        ("One.\n\nRaises:\n    errors.NotFound: no such id\n    OSError: the disk is full\n        or slow", 0),
        ("One. Raises: NotFound, Invalid.", 1),
        ("One.\n\nRaises: NotFound without a record;\nConflict for a running one.", 1),
        ("One.\n\nRaises:\n    NotFound, Invalid: no such id\n    errors.Nonsense: never\n    errors.Invalid:", 3),
    ],
)
def test_the_check_of_failures_finds_what_is_wrong(text: str, count: int) -> None:
    assert len(list(problems_of_raises(text))) == count
