"""Health checks that cannot be followed: containerd does not answer, or the disk is full."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moorage import errors
from moorage.health.model import HealthCheck, HealthPolicy
from moorage.health.probe import make_checks
from moorage.host.sockets import PluginSocket

POLICY = HealthPolicy((HealthCheck("command", command=("/check",)),))


class Process:
    """A process of which containerd does not report the exit."""

    stdout = stderr = None

    async def close_input(self) -> None:
        pass

    async def wait(self) -> None:
        raise errors.Unavailable("containerd does not answer")


@asynccontextmanager
async def lost(_: Sequence[str]) -> AsyncIterator[Any]:
    yield Process()


def full(_: Sequence[str]) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.anyio
@pytest.mark.parametrize(("run", "text"), [(lost, "containerd does not answer"), (full, "No space left on device")])
async def test_h04_a_command_that_cannot_be_followed_is_a_check_that_failed(
    run: Any, text: str, tmp_path: Path
) -> None:
    result = await make_checks(POLICY, PluginSocket(tmp_path, "s"), run)
    assert not result.is_passed
    assert text in result.text
