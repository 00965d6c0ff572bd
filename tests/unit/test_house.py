import ast
import importlib
import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
MODULES = sorted(path for path in (SOURCE / "moorage").rglob("*.py") if "_proto" not in path.parts)
PACKAGES = [path.parent for path in MODULES if path.name == "__init__.py"]

FILE_LINES = 400
FUNCTION_LINES = 40  # without the docstring
MEDIAN_FUNCTION_LINES = 10
ROOM_FILES = 15  # a package that can be surveyed; its __init__ and, in cli/, the file of each command are not counted

# A file ("moorage/x.py") or a function ("moorage/x.py:name") that may be longer: how long, and why it is not split.
EXCEPTIONS: dict[str, tuple[int, str]] = {
    "moorage/engine/engine.py": (440, "the facade of the engine: a short method for each request of the API"),
}

# What a quick command must not wait for.
SLOW_IMPORTS = ("aiohttp", "grpclib", "google.protobuf", "prometheus_client", "uvloop")

# What a command of cli/quick does without: each takes a tenth of its time, or several.
QUICK_DOES_WITHOUT = (
    *SLOW_IMPORTS,
    *("click", "msgspec", "http.client", "email", "ssl", "logging", "typing", "dataclasses", "inspect", "datetime"),
    *("socket", "selectors", "subprocess", "pathlib", "urllib", "signal", "threading", "unicodedata"),
)

type_of_function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file with its lines, the docstring not counted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, type_of_function):
            first, last = node.body[0], node.end_lineno
            assert last is not None
            assert first.end_lineno is not None
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            yield node.name, last - node.lineno + 1 - docstring


def sizes() -> Iterator[tuple[str, int, int]]:
    """Everything with a budget: its name, its lines, the budget."""
    for path in MODULES:
        yield name_of(path), len(path.read_text().splitlines()), FILE_LINES
        for function, lines in functions(path):
            yield f"{name_of(path)}:{function}", lines, FUNCTION_LINES


def test_files_and_functions_stay_within_their_budgets() -> None:
    too_long = [
        f"{name}: {lines} lines, may have {EXCEPTIONS.get(name, (budget, ''))[0]}"
        for name, lines, budget in sizes()
        if lines > EXCEPTIONS.get(name, (budget, ""))[0]
    ]
    assert not too_long, "split it, or say why not in EXCEPTIONS"


def test_every_exception_is_still_needed_and_has_a_reason() -> None:
    needed = {name for name, lines, budget in sizes() if lines > budget}
    assert set(EXCEPTIONS) <= needed
    assert all(reason.strip() for _, reason in EXCEPTIONS.values())


@pytest.mark.parametrize("room", PACKAGES, ids=name_of)
def test_a_room_can_be_surveyed(room: Path) -> None:
    files = [path.name for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len([name for name in files if not name.startswith("cmd_")]) <= ROOM_FILES, sorted(files)


def test_the_median_function_is_short() -> None:
    assert statistics.median(lines for path in MODULES for _, lines in functions(path)) < MEDIAN_FUNCTION_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_states_its_one_job(path: Path) -> None:
    if path.name == "_version.py":
        return
    assert ast.get_docstring(ast.parse(path.read_text()))


LAZY = {"moorage", "moorage.client", "moorage.containerd", "moorage.kit", "moorage.registry"}
"""Packages that import what they export when it is first used."""


def imports_for_typing(node: ast.stmt) -> list[ast.ImportFrom]:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return [each for each in node.body if isinstance(each, ast.ImportFrom)]
    return []


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_a_package_exports_what_it_imports_by_name_and_nothing_else(package: Path) -> None:
    name = ".".join(package.relative_to(SOURCE).parts)
    exported: list[str] = []
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if name in LAZY and isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
            continue
        assert not isinstance(node, ast.Import | type_of_function | ast.ClassDef), "a package's __init__ only exports"
        for found in [node] if isinstance(node, ast.ImportFrom) else imports_for_typing(node):
            assert all(alias.asname == alias.name for alias in found.names), "write: from moorage.a import X as X"
            exported += [alias.name for alias in found.names]
    public = set(getattr(importlib.import_module(name), "__all__", ())) - {"__version__"}
    assert sorted(exported) == sorted(public)


@pytest.mark.parametrize("package", sorted(LAZY))
def test_a_lazy_package_finds_each_name_and_no_other(package: str) -> None:
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        module.__getattr__("nonsense")


def checked_in_files() -> list[Path]:
    """What is tracked; where there is no git, everything outside the folders that tools make."""
    if (ROOT / ".git").exists():
        try:
            listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
            return [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
        except (OSError, subprocess.CalledProcessError):
            pass  # no git, or a checkout of another user's
    ignored = (ROOT / ".gitignore").read_text().split()
    made = {".git"} | {name.rstrip("/").rpartition("/")[2] for name in ignored if name.endswith("/")}
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in made]
        found += [Path(folder, name) for name in names]
    return found


# In pieces, so that this file does not contain what it searches. Hosts of packages, and paths of one machine.
FOREIGN = re.compile(
    "|".join(
        (
            r"pypi" + r"\.org",
            r"python" + r"hosted\.org",
            r"(deb|security|ftp|snapshot)" + r"\.debian\.org",
            r"npm" + r"js\.(org|com)",
            r"/opt/" + r"(pypi|wheels)",
            r"/wo" + r"rk/(main|shared)",
            r"/tmp/" + r"venv",
            r"\.py" + r"env/",
            r"/home/" + r"(?!user/|you/)\w+/",
            r"/Us" + r"ers/\w+/",
            r"/root/" + r"\.",
        )
    )
)


def test_no_file_names_a_package_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in checked_in_files():
        if path.is_symlink() or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in FOREIGN.finditer(text)]
    assert not found


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_constraints_pin_exactly_and_name_no_index() -> None:
    assert [pin for pin in pins() if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin)] == []


def test_everything_that_is_installed_to_run_and_to_develop_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = project["dependencies"] + extras["registry"] + extras["engine"] + extras["dev"]
    waiting = [Requirement(text) for text in texts if not text.startswith("moorage[")]
    pinned = {canonicalize_name(pin.partition("==")[0]) for pin in pins()}
    seen: set[str] = set()
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in seen:
            seen.add(name)
            needed = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert seen <= pinned


@pytest.mark.parametrize(
    ("module", "slow"),
    [
        ("moorage.cli.main", SLOW_IMPORTS),  # the command line starts without waiting for them
        ("moorage.cli.quick.entry", QUICK_DOES_WITHOUT),  # what each command line begins with
        ("moorage.cli.quick.commands", QUICK_DOES_WITHOUT),
        ("moorage.cli.quick.plugin_table", QUICK_DOES_WITHOUT),
        ("moorage.daemon", ("grpclib", "h2", "google.protobuf")),  # and an engine answers before it can run plugins
    ],
)
def test_what_must_be_quick_imports_nothing_slow(module: str, slow: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*(name for name in {slow!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
