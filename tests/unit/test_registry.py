"""Which plugin a text means."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from moorage import errors
from moorage.engine.meter import Meter
from moorage.engine.places import PluginPlaces
from moorage.engine.plugin import Plugin
from moorage.engine.registry import Registry
from moorage.engine.store import Record
from moorage.logs.files import PluginLog


def make(registry: Registry, name: str, id: str, tmp_path: Path) -> None:
    config = '{"entrypoint": ["/p"], "interface": {"socket": "s"}}'
    record = Record(id, name, name, config, name, "sha256:0", "overlayfs", id, datetime.now(UTC))
    places, log = PluginPlaces(id, tmp_path / "r", tmp_path / "p"), PluginLog(tmp_path / id)
    registry.add(Plugin(record, places, log, Meter()))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry()
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
def test_a03_case_091_full_id_then_name_then_beginning(registry: Registry, text: str, name: str) -> None:
    assert registry.get(text).name == name


@pytest.mark.parametrize("text", ["x/enable:v2", "nope", "", "UPPER", "ff" * 32, "x/enable@sha256:" + "0" * 64, "g"])
def test_a03_what_is_unknown_is_not_found(registry: Registry, text: str) -> None:
    with pytest.raises(errors.NotFound, match=f'plugin "{text}" not found'):
        registry.get(text)


def test_a03_an_ambiguous_beginning_is_invalid(registry: Registry) -> None:
    with pytest.raises(errors.Invalid, match='multiple plugins found for "a"'):
        registry.get("a")


def test_case_020_a_name_is_taken_from_the_moment_it_is_reserved(registry: Registry) -> None:
    with (
        registry.reserve("new:latest"),
        pytest.raises(errors.Conflict, match="plugin new:latest already exists"),
        registry.reserve("new:latest"),
    ):
        pass
    with registry.reserve("new:latest"):
        pass
    with pytest.raises(errors.Conflict, match="already exists"), registry.reserve("x/enable:latest"):
        pass
