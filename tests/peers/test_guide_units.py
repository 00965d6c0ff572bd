"""The unit and the line of fstab of docs/guide/volumes-for-programs.md, as systemd reads them."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.limits import limit

pytestmark = pytest.mark.needs("systemd-analyze")

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guide/volumes-for-programs.md").read_text()
UNIT = GUIDE.partition("```ini\n")[2].partition("```")[0]
MANUAL = (ROOT / "packaging/debian/mount.moorage.8").read_text().replace("\\-", "-")
GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")
STOPS = {"Requires", "Requisite", "BindsTo", "PartOf", "StopPropagatedFrom", "Upholds"}
"""With these, a stop or restart of one unit stops another one. Source: systemd.unit(5)."""


def read(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_v02_systemd_takes_the_unit_of_the_guide(tmp_path: Path) -> None:
    engine = (ROOT / "packaging/moorage.service").read_text()
    for name, text in (("moorage.service", engine), ("my-program.service", UNIT)):
        found = re.sub(r"/usr/bin/(moorage|my-program)", shutil.which("true") or "", text)
        (tmp_path / name).write_text(found)
    shutil.copy(ROOT / "packaging/moorage-down.service", tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "my-program.service"],
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
    )
    assert (done.returncode, "my-program" in done.stderr) == (0, False), done.stderr


def test_v02_a_stop_of_the_engine_does_not_stop_the_unit_of_the_guide() -> None:
    unit = read(UNIT)["Unit"]
    assert (unit["Wants"], unit["After"]) == ("moorage.service", "moorage.service")
    assert not STOPS & set(unit)


def test_v02_the_program_of_the_unit_gets_the_path_of_its_volume(tmp_path: Path) -> None:
    """As systemd gives the words to the shell: %n is the unit, and two dollars are one."""
    command = read(UNIT)["Service"]["ExecStart"].replace("%n", "my-program.service").replace("$$", "$")
    for name, line in (("moorage", 'echo "/a path/for $5"'), ("my-program", "printf '<%s>' \"$@\"")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    command = command.replace("/usr/bin/", f"{tmp_path}/")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=limit(20), check=True)
    assert done.stdout == "</a path/for my-program.service>"


@pytest.mark.skipif(not GENERATOR.exists(), reason="this machine has no generator of systemd for fstab")
@pytest.mark.parametrize("text", [GUIDE, MANUAL], ids=["guide", "manual"])
def test_v03_a_stop_of_the_engine_does_not_unmount_what_fstab_mounts(text: str, tmp_path: Path) -> None:
    (line,) = re.findall(r"^\S+/data +/mnt/data +moorage .*$", text, re.MULTILINE)
    (tmp_path / "fstab").write_text(f"{line}\n")
    subprocess.run(
        [GENERATOR, tmp_path, tmp_path, tmp_path],
        env={**os.environ, "SYSTEMD_FSTAB": str(tmp_path / "fstab")},
        capture_output=True,
        timeout=limit(20),
        check=True,
    )
    unit = read((tmp_path / "mnt-data.mount").read_text())
    assert unit["Unit"]["After"] == "moorage.service"
    assert not STOPS & set(unit["Unit"])
    assert unit["Mount"]["Type"] == "moorage"
