"""The tutorial and the guides that are written as a walk are walked through, on a real engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineProcess, engine
from support.pages import Reader

pytestmark = pytest.mark.real

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
def reader(house: EngineProcess, tmp_path: Path) -> Reader:
    """Somebody for whom this engine is the machine's."""
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


def test_l01_l02_the_tutorial_works_as_it_is_written(reader: Reader, house: EngineProcess) -> None:
    """The last one here: it takes the engine down."""
    done = reader.walk((DOCS / "tutorial.md").read_text())
    assert done[-1] == "moorage down"
    assert house.child is not None
    assert house.child.wait(30) == 0
    house.start()
