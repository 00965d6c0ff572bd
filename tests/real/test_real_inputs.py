"""Inputs of real plugins on an engine: what the kernel makes of them."""

from pathlib import Path

import pytest

from support.engines import EngineProcess, config

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


@pytest.mark.parametrize("options", [["rbind,ro"], ["ro,rslave"], ["rbind", "nosuid,ro"]])
def test_case_302_a_mount_with_joined_options_is_what_they_say(
    house: EngineProcess, nothing_else: None, tmp_path: Path, options: list[str]
) -> None:
    mount = {"name": "m", "source": str(tmp_path), "destination": "/m", "type": "bind", "options": options}
    house.create("joined", config(mounts=[mount]))
    shown = [each["Value"] for each in house.more("joined")["Privileges"] if each["Name"] == "bind mount"]
    house.enable("joined")
    lines = Path(f"/proc/{house.more('joined')['Pid']}/mountinfo").read_text().splitlines()
    (flags,) = (each.split()[5].split(",") for each in lines if each.split()[4] == "/m")
    assert "ro" in flags
    assert ("nosuid" in flags) == ("nosuid,ro" in options)
    assert "read-only" in shown[0][0]
