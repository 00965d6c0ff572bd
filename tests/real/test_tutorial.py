"""Pages that are written as a walk are walked through on a real engine, and its files are those of the reference."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineProcess, config
from support.limits import limit
from support.pages import Reader

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def reader(house: EngineProcess, tmp_path: Path) -> Reader:
    """A reader for whom this engine is the machine's."""
    return Reader(
        tmp_path / "reader",
        {"/run/moorage": house.exec_root, "/var/lib/moorage": house.root},
        {
            "MOORAGE_HOST": str(house.socket),
            "MOORAGE_ROOT": str(house.root),
            "MOORAGE_EXEC_ROOT": str(house.exec_root),
        },
    )


def test_l01_l02_the_guide_to_writing_a_plugin_works_as_it_is_written(reader: Reader) -> None:
    assert len(reader.walk((DOCS / "guide/write-a-plugin.md").read_text())) >= 15


def test_the_guide_to_the_kit_works_as_it_is_written(reader: Reader) -> None:
    assert len(reader.walk((DOCS / "guide/plugin-kit.md").read_text())) >= 7


def test_a05_the_calls_of_the_reference_of_the_api_work(reader: Reader) -> None:
    reader.walk((DOCS / "reference/api.md").read_text())
    assert json.loads((reader.home / "openapi.json").read_text())["openapi"] == "3.1.0"


def test_the_reference_of_files_has_every_one_that_is_there(house: EngineProcess) -> None:
    house.create("seen", config(propagatedMount="/mnt", workdir="/"))
    house.enable("seen")
    id = house.inspect("seen")["Id"]
    page = (DOCS / "reference/files.md").read_text()
    rows = [
        row
        for line in page.splitlines()
        if line.startswith("| `")
        for row in re.findall("`([^`]+)`", line.split("|")[1])
    ]
    for base in (house.root, house.exec_root):
        found = {str(path.relative_to(base)) for path in walk(base)}
        names = {re.sub(rf"{id}\.\d+", "<id>.<run>", name) for name in found}
        names = {
            name.replace(id, "<id>").replace(id[:12], "<12>").replace("plugins.moby", "<namespace>") for name in names
        }
        assert {name for name in names if not is_documented(name, rows)} == set()
    house.remove("seen", force=True)


def walk(base: Path) -> Iterator[Path]:
    """Everything below, but for what is containerd's, runc's or a plugin's own."""
    expected = {"s", "root", "propagated-mount", "tmpmounts"}
    for path in base.iterdir():
        yield path
        is_containerds = path.name.startswith("io.") or path.name in expected or path.parent.name == "plugins.moby"
        if path.is_dir() and not is_containerds:
            yield from walk(path)


def is_documented(name: str, rows: list[str]) -> bool:
    """Whether a row is this path, or one above or below it."""
    plain = [row.rstrip("/") for row in rows]
    return any(name == row or row.startswith(f"{name}/") or name.startswith(f"{row}/") for row in plain)


def test_l01_l02_the_tutorial_works_as_it_is_written(reader: Reader, house: EngineProcess) -> None:
    done = reader.walk((DOCS / "tutorial.md").read_text())
    assert done[-1] == "moorage down"
    assert house.child is not None
    assert house.child.wait(limit(30)) == 0
    house.start()


def test_m18_the_reference_of_the_configuration_works_as_it_is_written(reader: Reader, house: EngineProcess) -> None:
    reader.paths = {"/run/plugins": house.exec_root, "/srv/plugins": house.root}
    assert reader.walk((DOCS / "reference/serve.md").read_text())[-1].startswith("moorage down")
    assert house.child is not None
    assert house.child.wait(limit(30)) == 0
