"""The profiles of plugins, as AppArmor's own parser reads them."""

import shutil
import subprocess

import pytest

from moorage.plugins.apparmor import APPARMOR_PROFILES, profiles_text
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("apparmor_parser")]

# What kernels can enforce; without it the parser leaves out what the kernel here cannot.
KERNEL = "/etc/apparmor.d/abi/3.0"
OLDER_KERNEL = "/etc/apparmor.d/abi/kernel-5.4-vanilla"


def parse(text: str, *options: str, kernel: str = KERNEL) -> "subprocess.CompletedProcess[bytes]":
    """What the parser says; nothing is loaded into a kernel."""
    parser = str(shutil.which("apparmor_parser"))
    command = [parser, "--skip-kernel-load", "--skip-cache", f"--kernel-features={kernel}", *options]
    return subprocess.run(command, input=text.encode(), capture_output=True, timeout=limit(60), check=False)


def test_x06_the_parser_takes_every_profile_and_names_it_as_we_do() -> None:
    done = parse(profiles_text(), "--names")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.decode().split()) == sorted(APPARMOR_PROFILES)


def test_x06_every_rule_can_be_enforced_so_the_parser_has_nothing_to_warn_of() -> None:
    done = parse(profiles_text(), "--warn=all", "--stdout")
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(f"{name}\0".encode() in done.stdout for name in APPARMOR_PROFILES)


def test_x06_a_profile_with_a_fault_is_refused_so_that_the_tests_above_can_fail() -> None:
    assert parse(profiles_text().replace("  mount,", "  mont,")).returncode != 0
    assert b"not enforced" in parse(profiles_text(), "--warn=all", "--stdout", kernel=OLDER_KERNEL).stderr
