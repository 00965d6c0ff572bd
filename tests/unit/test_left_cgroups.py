from pathlib import Path

import pytest

from moorage.containerd._left_cgroups import remove_left_cgroups


def left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def test_an_empty_group_goes_in_every_hierarchy_and_its_parents_stay(tmp_path: Path) -> None:
    make(tmp_path, "moorage/a", "memory/moorage/a", "pids/moorage/a", "pids/moorage/b")
    remove_left_cgroups({"linux": {"cgroupsPath": "/moorage/a"}}, tmp_path)
    assert left(tmp_path) == {"moorage", "memory", "memory/moorage", "pids", "pids/moorage", "pids/moorage/b"}


def test_a_group_that_holds_anything_stays(tmp_path: Path) -> None:
    make(tmp_path, "pids/moorage/a/inner")
    remove_left_cgroups({"linux": {"cgroupsPath": "/moorage/a"}}, tmp_path)
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
def test_what_is_no_path_of_ours_removes_nothing(tmp_path: Path, spec: dict[str, object]) -> None:
    make(tmp_path, "a", "pids/a", "pids/system.slice:moorage:a")
    before = left(tmp_path)
    remove_left_cgroups(spec, tmp_path)
    assert left(tmp_path) == before
