import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moorage.containerd.shims.leftovers import remove_orphaned_cgroups, thaw_groups

pytestmark = [pytest.mark.quick, pytest.mark.anyio]


async def clear(spec: dict[str, Any], root: Path) -> None:
    await remove_orphaned_cgroups(spec, runtime="runc", within=0.1, root=root)


@contextmanager
def running(command: list[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def left(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


async def test_an_empty_group_goes_in_every_hierarchy_and_its_parents_stay(tmp_path: Path) -> None:
    make(tmp_path, "moorage/a", "memory/moorage/a", "pids/moorage/a", "pids/moorage/b")
    await clear({"linux": {"cgroupsPath": "/moorage/a"}}, tmp_path)
    assert left(tmp_path) == {"moorage", "memory", "memory/moorage", "pids", "pids/moorage", "pids/moorage/b"}


async def test_a_group_that_contains_anything_stays(tmp_path: Path) -> None:
    make(tmp_path, "pids/moorage/a/inner")
    await clear({"linux": {"cgroupsPath": "/moorage/a"}}, tmp_path)
    assert "pids/moorage/a/inner" in left(tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"linux": None},
        {"linux": {}},
        *(
            {"linux": {"cgroupsPath": path}}
            for path in (
                "",
                "/",
                "a",
                "a:b",
                "a:b:c:d",
                "a:b:c",
                ".slice:b:c",
                "a-.slice:b:c",
                "/../pids",
                "..:b:c",
                None,
                3,
            )
        ),
    ],
)
async def test_a_foreign_path_removes_nothing(tmp_path: Path, spec: dict[str, Any]) -> None:
    make(tmp_path, "a", "pids/a", "pids/a:b", "b-c.scope", "pids/b-c.scope")
    before = left(tmp_path)
    await clear(spec, tmp_path)
    assert left(tmp_path) == before


SCOPE = {"linux": {"cgroupsPath": "moorage.slice:moorage:a"}}


async def test_a_scope_is_left_to_systemd(tmp_path: Path) -> None:
    make(tmp_path, "moorage.slice/moorage-a.scope")
    await clear(SCOPE, tmp_path)
    assert left(tmp_path) == {"moorage.slice", "moorage.slice/moorage-a.scope"}


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("/moorage/a", "moorage/a"),
        ("moorage.slice:moorage:a", "moorage.slice/moorage-a.scope"),
        ("x-y.slice:moorage:a", "x.slice/x-y.slice/moorage-a.scope"),
        (":moorage:a", "system.slice/moorage-a.scope"),
        ("-.slice::a", "a.scope"),
        ("moorage.slice:moorage:a.slice", "moorage.slice/a.slice"),
    ],
)
async def test_what_is_half_set_up_in_a_group_is_killed_and_what_is_frozen_continues(
    tmp_path: Path, path: str, group: str
) -> None:
    spec = {"linux": {"cgroupsPath": path}}
    root, program = tmp_path / "cgroup", tmp_path / "init"
    program.write_text("import time; time.sleep(1000)")
    make(root, group)
    processes = root / group / "cgroup.procs"
    freezer = root / group / "cgroup.freeze"
    with (
        running(["runc", "init"], executable=sys.executable, cwd=tmp_path) as half_set_up,
        running(["sleep", "1000"]) as other,
    ):
        processes.write_text(f"{half_set_up.pid}\n{other.pid}\n")
        freezer.write_text("1")
        await clear(spec, root)
        assert half_set_up.poll() == -signal.SIGKILL
        assert other.poll() is None
        assert freezer.read_text() == "0"
    freezer.write_text("1")
    thaw_groups(spec, root)
    assert freezer.read_text() == "0"
