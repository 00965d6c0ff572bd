from pathlib import Path
from typing import Any

import pytest

from moorage.containerd._left_cgroups import clear_left_cgroups

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


async def clear(spec: dict[str, Any], root: Path) -> None:
    await clear_left_cgroups(spec, runtime="runc", within=0.1, root=root)


def left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


async def test_an_empty_group_goes_in_every_hierarchy_and_its_parents_stay(tmp_path: Path) -> None:
    make(tmp_path, "moorage/a", "memory/moorage/a", "pids/moorage/a", "pids/moorage/b")
    await clear({"linux": {"cgroupsPath": "/moorage/a"}}, tmp_path)
    assert left(tmp_path) == {"moorage", "memory", "memory/moorage", "pids", "pids/moorage", "pids/moorage/b"}


async def test_a_group_that_holds_anything_stays(tmp_path: Path) -> None:
    make(tmp_path, "pids/moorage/a/inner")
    await clear({"linux": {"cgroupsPath": "/moorage/a"}}, tmp_path)
    assert "pids/moorage/a/inner" in left(tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"linux": None},
        {"linux": {}},
        *({"linux": {"cgroupsPath": path}} for path in ("", "/", "a", "system.slice:moorage:a", "/../pids", None, 3)),
    ],
)
async def test_what_is_no_path_of_ours_removes_nothing(tmp_path: Path, spec: dict[str, Any]) -> None:
    make(tmp_path, "a", "pids/a", "pids/system.slice:moorage:a")
    before = left(tmp_path)
    await clear(spec, tmp_path)
    assert left(tmp_path) == before
