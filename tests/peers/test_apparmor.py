"""The profiles of plugins, as AppArmor's own parser reads them."""

import shutil
import subprocess

import pytest

from moorage.plugins.apparmor import PROFILES, profile_text

pytestmark = [pytest.mark.real, pytest.mark.needs("apparmor_parser")]


def parse(text: str) -> "subprocess.CompletedProcess[str]":
    """What the parser says; nothing is loaded into a kernel."""
    command = [str(shutil.which("apparmor_parser")), "--skip-kernel-load", "--skip-cache", "--names"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", PROFILES)
def test_x06_the_parser_takes_every_profile_and_names_it_as_we_do(name: str) -> None:
    done = parse(profile_text(name))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name]


def test_x06_a_profile_with_a_fault_is_refused_so_that_the_test_above_can_fail() -> None:
    assert parse(profile_text(PROFILES[0]).replace("deny mount,", "deny mont,")).returncode != 0
