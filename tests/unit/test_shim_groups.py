"""Which shims of a group a creation waits for."""

import os
from typing import Any, cast

import pytest

from moorage.containerd.shims.groups import GroupedShims
from moorage.containerd.shims.processes import shim_of

pytestmark = pytest.mark.anyio

GROUP = {"annotations": {"io.containerd.runc.v2.group": "all"}}


async def test_e49_a_creation_does_not_wait_for_a_program_with_the_number_of_a_shim_that_exited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("moorage.containerd.shims.groups.shim_of", lambda pid: pid)
    shims = GroupedShims(cast(Any, None), within=0.2)
    shims.register("a", GROUP)
    await shims.adopt("a", os.getpid())
    async with shims.deletion("a"):
        pass

    async def create() -> int:
        return os.getpid()

    assert await shims.create_task("a", create) == os.getpid()
    assert "does not exit" not in caplog.text


def test_a_process_that_is_no_shims_child_has_no_shim() -> None:
    assert shim_of(1) is None
