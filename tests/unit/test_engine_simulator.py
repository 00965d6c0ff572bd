"""The engine's decisions in random lives, with the clock and the host in memory."""

from pathlib import Path

import pytest

from support.engine_simulator import play_many
from support.engine_world import KilledStore, patch

pytestmark = pytest.mark.quick

SCHEDULES, CHUNK = 20, 10


@pytest.mark.parametrize("first", range(0, SCHEDULES, CHUNK))
def test_m08_m10_states_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    patch(monkeypatch)
    assert play_many(range(first, first + CHUNK), tmp_path) == []


def test_m08_forgetting_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(monkeypatch)
    monkeypatch.setattr(KilledStore, "save", lambda self, record: None)
    assert play_many(range(2), tmp_path)
