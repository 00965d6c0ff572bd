"""The examples on the kit, and what ``moorage new`` writes: their own tests, the conformance suite, their memory."""

import filecmp
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.engines import engine
from support.foreground import Machine, environment
from support.limits import limit

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
KIT = ROOT / "src/moorage/kit"
KINDS = ("volume", "log", "authz", "network", "ipam", "metrics")
IDLE_BYTES = 20 << 20


def moorage(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moorage", *map(str, words)]
    return subprocess.run(command, env=environment(None), capture_output=True, text=True, timeout=limit(120))


def own_tests(directory: Path) -> None:
    command = ["/usr/bin/python3", "-B", "-m", "unittest", "discover", "tests"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=limit(60))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Ran [1-9]", done.stderr, re.MULTILINE)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_own_tests_and_the_suite(tmp_path: Path, kind: str) -> None:
    assert moorage("new", kind, tmp_path / "my-plugin").returncode == 0
    own_tests(tmp_path / "my-plugin")
    done = moorage("test", tmp_path / "my-plugin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed, 0 skipped" in done.stdout


def test_new_refuses_what_exists_and_names_that_are_none(tmp_path: Path) -> None:
    assert moorage("new", "volume", tmp_path / "a").returncode == 0
    again = moorage("new", "volume", tmp_path / "a")
    assert (again.returncode, "it exists" in again.stderr) == (1, True)
    for name in ("A", "a_b", "-a", "1a", "a--b"):
        assert moorage("new", "volume", "--", tmp_path / name).returncode == 1
        assert not (tmp_path / name).exists()
    assert "not a directory" in moorage("new", "kit", tmp_path).stderr


def test_the_kit_of_a_plugin_is_renewed(tmp_path: Path) -> None:
    assert moorage("new", "authz", tmp_path / "a").returncode == 0
    kit = tmp_path / "a/rootfs/plugin/moorage/kit"
    (kit / "server.py").write_text("old")
    (kit / "removed.py").touch()
    assert moorage("new", "kit", tmp_path / "a").returncode == 0
    assert (kit / "server.py").read_bytes() == (KIT / "server.py").read_bytes()
    assert not (kit / "removed.py").exists()
    assert not list(kit.rglob("__pycache__"))


def test_the_copy_of_the_kit_in_hello_volume_is_current() -> None:
    copy = EXAMPLES / "hello-volume/rootfs/plugin/moorage/kit"
    files = {str(path.relative_to(KIT)) for path in KIT.rglob("*.py")}
    assert {str(path.relative_to(copy)) for path in copy.rglob("*.py")} == files
    assert filecmp.cmpfiles(KIT, copy, sorted(files), shallow=False) == (sorted(files), [], []), "run examples/copy-kit"


@pytest.mark.parametrize("name", ["json-lines", "rule-file"])
def test_an_example_passes_its_own_tests_and_the_suite(tmp_path: Path, name: str) -> None:
    shutil.copytree(EXAMPLES / name, tmp_path / name, symlinks=True)
    assert moorage("new", "kit", tmp_path / name).returncode == 0  # examples/copy-kit does it in the checkout
    own_tests(tmp_path / name)
    done = moorage("test", tmp_path / name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed, 0 skipped" in done.stdout


def test_the_driver_of_the_readme_has_20_lines_and_passes_the_suite(tmp_path: Path) -> None:
    program = (ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    lines = [line for line in program.splitlines() if line.strip()]
    assert len(lines) <= 20
    shutil.copytree(EXAMPLES / "hello-volume", tmp_path / "it", symlinks=True)
    (tmp_path / "it/rootfs/plugin/hello_volume.py").write_text(program.replace("directories.sock", "hello.sock"))
    done = moorage("test", tmp_path / "it")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("static-cc")
def test_an_idle_plugin_on_the_kit_uses_20_mb_at_most(tmp_path: Path) -> None:
    with engine(tmp_path) as house:
        command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "create", "-y", "hello"]
        subprocess.run([*command, EXAMPLES / "hello-volume"], env=environment(None), check=True, capture_output=True)
        house.enable("hello")
        house.call("hello", "VolumeDriver.List")
        pid = house.more("hello")["Pid"]
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) * 1024  # type: ignore[index]
        assert resident <= IDLE_BYTES


@pytest.mark.parametrize("kind", ["volume", "log"])
def test_a_new_plugin_runs_at_once(machine: Machine, tmp_path: Path, kind: str) -> None:
    assert moorage("new", kind, tmp_path / "my-plugin").returncode == 0
    run = machine.start(tmp_path / "my-plugin")
    assert run.until("ready")["implements"] == [{"volume": "VolumeDriver", "log": "LogDriver"}[kind]]
    assert run.end(signal.SIGINT) == 130
    assert run.exit["code"] == 0
    assert run.stderr == ""
