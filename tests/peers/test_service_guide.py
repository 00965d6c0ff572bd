"""The steps of the guide to the service are done here, but for what needs systemd as process 1."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import moorage

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/guide/service.md").read_text()
LINES = re.findall(r"^    (\S.*?)(?:\s{2,}#.*)?$", PAGE, re.MULTILINE)

NEEDS_SYSTEMD = (
    "no systemd runs as process 1 here; tests/peers/test_units.py reads the units, test_deb.py starts the engine"
)
ON_A_MACHINE = "no systemd runs as process 1 here; tests/machines/test_control_groups.py"
WITH_APPARMOR = "tests/machines/test_apparmor.py: AppArmor is not in the kernel of every machine that runs these tests"
ELSEWHERE = {
    "scripts/deb": "tests/peers/test_deb.py",
    "apt install ./dist/moorage_*.deb": "tests/peers/test_deb.py, with dpkg into a root of its own",
    "systemctl daemon-reload": NEEDS_SYSTEMD,
    "systemctl enable --now moorage": NEEDS_SYSTEMD,
    "systemctl status moorage": NEEDS_SYSTEMD,
    "journalctl -u moorage -p warning": NEEDS_SYSTEMD,
    "systemctl restart moorage": NEEDS_SYSTEMD,
    "systemctl stop moorage": NEEDS_SYSTEMD,
    "systemd-cgls -u moorage.slice": ON_A_MACHINE,
    "systemctl status moorage.slice": ON_A_MACHINE,
    "systemctl set-property moorage.slice MemoryMax=2G": ON_A_MACHINE,
    "systemctl set-property --runtime moorage-<id>.<run>.scope CPUQuota=20%": ON_A_MACHINE,
    "moorage inspect hello | grep AppArmor": WITH_APPARMOR,
    'journalctl -k --grep \'apparmor="DENIED".*profile="moorage\'': WITH_APPARMOR,
    "dmesg | grep 'apparmor=\"DENIED\"'": WITH_APPARMOR,
    "moorage policy hello --apparmor moorage-default-host": WITH_APPARMOR,
    "moorage policy hello --apparmor unconfined": WITH_APPARMOR,
    "moorage policy hello --apparmor default": WITH_APPARMOR,
    "moorage down": "tests/real/test_examples_docs.py",
}
SETTINGS = [line for line in LINES if re.fullmatch(r"[A-Z_]+=\S*", line)]
HERE = [line for line in LINES if line not in ELSEWHERE and line not in SETTINGS]


def test_the_page_has_what_the_table_says() -> None:
    assert set(ELSEWHERE) <= set(LINES)
    assert len(HERE) >= 7


@pytest.mark.needs("man")
@pytest.mark.parametrize("line", HERE)
def test_each_command_works(line: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("moorage", "-m moorage"), ("python3", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    # Paths of the machine become paths of the test.
    moved = re.sub(r"/(etc|usr/share)/", rf"{tmp_path}/\1/", line).replace("build/man", f"{tmp_path}/man")
    for folder in re.findall(rf"{tmp_path}/(?:etc|usr)/[\w/.-]*(?=/)", moved):
        Path(folder).mkdir(parents=True)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(moorage.__file__).parents[1]),
        "PYTHON": sys.executable,
    }
    if line.startswith("man "):  # of the line before it
        subprocess.run(["scripts/man", tmp_path / "man"], env=environment, cwd=ROOT, check=True)
    done = subprocess.run(
        ["bash", "-ec", moved], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def test_the_settings_are_variables_that_serve_reads() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "moorage", "serve", "--help"], capture_output=True, text=True, check=True
    )
    commands = (ROOT / "docs/reference/commands.md").read_text()
    assert "Usage" in shown.stdout
    for name in {*re.findall(r"MOORAGE_[A-Z_]+", PAGE)} - {"MOORAGE_HOST"}:
        assert f"(`{name}`)" in commands
        assert name in (ROOT / "packaging/moorage.service").read_text()


def test_the_numbers_are_those_of_the_unit() -> None:
    unit = (ROOT / "packaging/moorage.service").read_text()
    assert "\nWatchdogSec=60\n" in unit
    assert "\nRestartSec=2\n" in unit
    assert "after 2 s" in PAGE
    assert "every 30 s" in PAGE
    assert "after 60 s" in PAGE
