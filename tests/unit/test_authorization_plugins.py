"""Which plugins a dockerd authorizes requests by."""

import json
from pathlib import Path

import pytest

from moorage.engine.consumers.authorization import authorization_plugins

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dockerd"], set()),
        (["dockerd", "--authorization-plugin", "a:1"], {"a:1"}),
        (["dockerd", "--authorization-plugin=a:1", "-D", "--authorization-plugin=b"], {"a:1", "b"}),
        (["dockerd", "--authorization-plugin"], set()),
    ],
)
def test_p03_authorization_plugins_of_a_command_line(words: list[str], expected: set[str], tmp_path: Path) -> None:
    assert authorization_plugins(words, tmp_path) == expected


@pytest.mark.parametrize("option", [[], ["--config-file", "/x.json"], ["--config-file=/x.json"]])
def test_p03_authorization_plugins_of_a_configuration(option: list[str], tmp_path: Path) -> None:
    path = tmp_path / ("x.json" if option else "etc/docker/daemon.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"authorization-plugins": ["a:1", 7]}))
    assert authorization_plugins(["dockerd", *option], tmp_path) == {"a:1"}
    for damaged in ("{", "[]", '{"authorization-plugins": "a"}'):
        path.write_text(damaged)
        assert authorization_plugins(["dockerd", *option], tmp_path) == set()
