"""Which settings of a managed plugin of Docker differ from its config."""

from typing import Any

import pytest

from moorage.cli.migration.docker_root import changed_settings

pytestmark = pytest.mark.quick

CONFIG: dict[str, Any] = {
    "Env": [{"Name": "A", "Value": "0"}, {"Name": "B", "Value": None}],
    "Mounts": [{"Name": "data", "Source": "/srv"}, {"Name": "open", "Source": None}],
    "Linux": {"Devices": [{"Name": "disk", "Path": "/dev/sda"}]},
    "Args": {"Name": "args", "Value": ["-v"]},
}
DEFAULTS: dict[str, Any] = {
    "Env": ["A=0", "B="],
    "Mounts": [{"Name": "data", "Source": "/srv"}, {"Name": "open", "Source": None}],
    "Devices": [{"Name": "disk", "Path": "/dev/sda"}],
    "Args": ["-v"],
}


def test_p20_defaults_are_not_set() -> None:
    assert changed_settings(CONFIG, DEFAULTS) == []


@pytest.mark.parametrize(
    ("settings", "assignments"),
    [
        ({"Env": ["A=1", "B="]}, ["A=1"]),
        ({"Env": ["A=0", "B=x=y z"]}, ["B=x=y z"]),
        ({"Mounts": [{"Name": "data", "Source": "/tmp"}, {"Name": "open", "Source": "/x"}]},
         ["data.source=/tmp", "open.source=/x"]),
        ({"Devices": [{"Name": "disk", "Path": "/dev/sdb"}]}, ["disk.path=/dev/sdb"]),
        ({"Args": ["-q", "two words"]}, ["args=-q 'two words'"]),
        ({"Args": []}, ["args="]),
    ],
)  # fmt: skip
def test_p20_settings_that_differ_are_set(settings: dict[str, Any], assignments: list[str]) -> None:
    assert changed_settings(CONFIG, DEFAULTS | settings) == assignments


def test_p20_a_config_without_entries_has_no_settings() -> None:
    nothing = {"Env": None, "Mounts": None, "Devices": None, "Args": None}
    assert changed_settings({"Env": None, "Mounts": None, "Linux": None, "Args": None}, nothing) == []
