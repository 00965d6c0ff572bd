"""Which plugin a text means."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from moorage import errors
from moorage.engine.plugin import PluginIndex, PluginState
from moorage.engine.store import Store
from moorage.engine.telemetry import EngineCounters, EventLog
from moorage.engine.values import PluginRecord
from moorage.logs.reader import PluginLog
from moorage.runs.directories import PluginDirectories
from moorage.runs.plan import PlanOptions


def make(index: PluginIndex[PluginState], name: str, id: str, tmp_path: Path) -> None:
    config = '{"entrypoint": ["/p"], "interface": {"socket": "s"}}'
    record = PluginRecord(id, name, name, config, name, "sha256:0", "overlayfs", id, datetime.now(UTC))
    directories, log = PluginDirectories(id, tmp_path / "r", tmp_path / "p"), PluginLog(tmp_path / id)
    store, events = Store(tmp_path), EventLog()
    index.add(PluginState(record, directories, log, store, events, EngineCounters(), PlanOptions()))


@pytest.fixture
def index(tmp_path: Path) -> PluginIndex[PluginState]:
    made: PluginIndex[PluginState] = PluginIndex()
    make(made, "localhost:5000/a/json:v1", "aa" * 32, tmp_path)
    make(made, "x/enable:latest", "ab" * 32, tmp_path)
    make(made, "deadbeef:latest", "ac" * 32, tmp_path)
    make(made, "other:latest", "deadbeef" * 8, tmp_path)
    return made


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("localhost:5000/a/json:v1", "localhost:5000/a/json:v1"),
        ("x/enable", "x/enable:latest"),
        ("docker.io/x/enable:latest", "x/enable:latest"),
        ("deadbeef", "deadbeef:latest"),  # a name goes before the beginning of an id
        ("deadbeefd", "other:latest"),
        ("aa", "localhost:5000/a/json:v1"),
        ("d", "other:latest"),
        ("ab" * 32, "x/enable:latest"),
    ],
)
def test_a03_case_091_full_id_then_name_then_beginning(index: PluginIndex[PluginState], text: str, name: str) -> None:
    assert index.get(text).name == name


@pytest.mark.parametrize("text", ["x/enable:v2", "nope", "", "UPPER", "ff" * 32, "x/enable@sha256:" + "0" * 64, "g"])
def test_a03_what_is_unknown_is_not_found(index: PluginIndex[PluginState], text: str) -> None:
    with pytest.raises(errors.NotFound, match=f'plugin "{text}" not found'):
        index.get(text)


def test_a03_an_ambiguous_beginning_is_invalid(index: PluginIndex[PluginState]) -> None:
    with pytest.raises(errors.Invalid, match='multiple plugins found for "a"'):
        index.get("a")


def test_case_020_a_name_is_taken_from_the_moment_it_is_reserved(index: PluginIndex[PluginState]) -> None:
    with (
        index.reserve("new:latest"),
        pytest.raises(errors.Conflict, match="plugin new:latest already exists"),
        index.reserve("new:latest"),
    ):
        pass
    with index.reserve("new:latest"):
        pass
    with pytest.raises(errors.Conflict, match="already exists"), index.reserve("x/enable:latest"):
        pass
