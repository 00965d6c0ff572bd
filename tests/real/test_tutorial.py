"""The tutorial and the guides that are written as a walk are walked through, on a real engine."""

from pathlib import Path

import pytest

from support.engines import engine
from support.pages import Reader

pytestmark = pytest.mark.real

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_l01_l02_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    with engine(tmp_path) as house:
        places = {"/run/moorage": house.exec_root, "/var/lib/moorage": house.root}
        environment = {
            "MOORAGE_HOST": str(house.socket),
            "MOORAGE_ROOT": str(house.root),
            "MOORAGE_EXEC_ROOT": str(house.exec_root),
        }
        done = Reader(tmp_path / "reader", places, environment).walk((DOCS / "tutorial.md").read_text())
        assert done[-1] == "moorage down"
        assert house.child is not None
        assert house.child.wait(30) == 0
