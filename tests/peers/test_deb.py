"""The Debian package: built, looked at, installed into a root of its own, run, removed."""

import gzip
import os
import re
import subprocess
from pathlib import Path

import pytest

from moorage import __version__
from moorage.cli.main import _COMMANDS
from support.engines import EngineProcess, engine
from support.service_manager import service_manager

pytestmark = [pytest.mark.long, pytest.mark.real, pytest.mark.needs("dpkg-deb", "/usr/bin/python3", "static-cc")]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"  # what the package is for
LINK = "etc/systemd/system/multi-user.target.wants/moorage.service"


def run(*command: str | Path, **more: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C", **more}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if subprocess.run([PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"], check=False).returncode:
        pytest.skip(f"{PYTHON} is too old for the package")
    folder = tmp_path_factory.mktemp("deb")
    builder = {"DEBFULLNAME": "A Builder", "DEBEMAIL": "builder@example.org"}
    run("scripts/deb", folder, PYTHON=PYTHON, DPKG_DEB_COMPRESSOR_TYPE="gzip", **builder)  # xz takes half a minute
    (found,) = folder.glob("moorage_*.deb")
    return found


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    run("dpkg-deb", "-x", package, folder)
    return folder


def test_the_control_file_says_what_it_needs(package: Path) -> None:
    fields = dict(re.findall(r"^ (\S+): (.*)$", run("dpkg-deb", "-I", package), re.MULTILINE))
    assert fields["Package"] == "moorage"
    assert fields["Version"].startswith(__version__)
    assert fields["Maintainer"] == "A Builder <builder@example.org>"
    assert re.fullmatch(r"python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+~\), .*", fields["Depends"])
    assert {"containerd", "runc"} <= set(fields["Depends"].replace(",", " ").split())
    for script in ("postinst", "prerm", "postrm"):
        run("sh", "-n", ROOT / f"packaging/debian/{script}")


def test_it_has_everything_and_nothing_of_this_machine(package: Path, unpacked: Path) -> None:
    listed = run("dpkg-deb", "-c", package).splitlines()
    assert all(line.split()[1] == "root/root" for line in listed)
    names = {line.split()[5].removeprefix("./") for line in listed}
    assert {"usr/bin/moorage", "usr/lib/moorage/site/moorage/cli/main.py"} <= names
    assert {f"usr/lib/systemd/system/{unit}" for unit in ("moorage.service", "moorage-down.service")} <= names
    assert {f"usr/share/man/man1/moorage-{name}.1.gz" for name in _COMMANDS} <= names
    for shares in (
        "bash-completion/completions/moorage",
        "zsh/vendor-completions/_moorage",
        "fish/vendor_completions.d/moorage.fish",
        "doc/moorage/copyright",
    ):
        assert (unpacked / "usr/share" / shares).stat().st_size > 0
    assert not any(name.startswith("etc/") for name in names)  # no conffile
    for path in unpacked.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert str(ROOT).encode() not in data, path
            assert b"/site-packages/" not in data or path.suffix != ".pyc", path
    log = gzip.decompress((unpacked / "usr/share/doc/moorage/changelog.gz").read_bytes()).decode()
    assert re.match(rf"moorage \({re.escape(__version__)}\S*\) unstable; urgency=medium\n\n  \* ", log)
    assert "\n -- A Builder <builder@example.org>  " in log


def test_it_runs_from_where_it_was_unpacked_without_writing_there(unpacked: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in unpacked.rglob("*")}
    program = unpacked / "usr/bin/moorage"
    assert f"moorage     {__version__}\n" in run(program, "version", PYTHONPATH="/nowhere")
    assert "Usage: moorage serve" in run(program, "serve", "--help")
    asked = f"import runpy; runpy.run_path({str(program)!r}); import aiohttp; print(aiohttp.__file__)"
    assert run(PYTHON, "-IB", "-c", asked).startswith(f"{unpacked}/usr/lib/moorage/site/")
    assert {path: path.lstat().st_mtime_ns for path in unpacked.rglob("*")} == before


def test_its_engine_serves_as_the_unit_starts_it(unpacked: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", (ROOT / "packaging/moorage.service").read_text(), re.MULTILINE)
    program, *words = line.split()
    with engine(tmp_path) as house, service_manager(f"{tmp_path}/notify") as told:
        house.end()
        house.child = start(house, [str(unpacked) + program, *words], NOTIFY_SOCKET=f"{tmp_path}/notify")
        told.until("READY", "1")
        assert told.senders == {house.child.pid}  # the program itself, as NotifyAccess=main wants it
        house.wait_until(lambda: house.info()["Moorage"]["Problem"] == "", "containerd is found")
        assert house.end() == 0
        house.start()


def start(house: EngineProcess, command: list[str], **more: str) -> "subprocess.Popen[bytes]":
    places = {"MOORAGE_ROOT": str(house.root), "MOORAGE_EXEC_ROOT": str(house.exec_root)}
    with house.log.open("ab") as log:
        surroundings = {"PATH": os.environ["PATH"], **places, **more}
        return subprocess.Popen(command, env=surroundings, stdout=log, stderr=log, start_new_session=True)


def dpkg(root: Path, *words: str | Path) -> str:
    return run("dpkg", f"--root={root}", "--force-script-chrootless", "--force-depends", "--log=/dev/null", *words)


def test_dpkg_installs_upgrades_removes_and_purges_it(package: Path, tmp_path: Path) -> None:
    for folder in ("info", "updates", "triggers"):
        (tmp_path / "var/lib/dpkg" / folder).mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").touch()
    dpkg(tmp_path, "--install", package)
    assert "install ok installed" in dpkg(tmp_path, "--status", "moorage")
    has_helper = subprocess.run(["which", "deb-systemd-helper"], capture_output=True, check=False).returncode == 0
    assert (tmp_path / LINK).is_symlink() is has_helper
    dpkg(tmp_path, "--install", package)  # an upgrade
    data = tmp_path / "var/lib/moorage/plugins"
    data.mkdir(parents=True)
    dpkg(tmp_path, "--remove", "moorage")
    assert data.exists()
    assert not (tmp_path / "usr/bin/moorage").exists()
    assert not (tmp_path / "usr/lib/moorage").exists()
    dpkg(tmp_path, "--purge", "moorage")
    assert not data.parent.exists()
    assert not (tmp_path / LINK).is_symlink()


@pytest.mark.needs("lintian")
def test_lintian_finds_no_error(package: Path) -> None:
    run("lintian", "--fail-on=error", "--suppress-tags=embedded-library,unstripped-binary-or-object", package)


@pytest.mark.needs("systemd-analyze")
def test_the_units_are_in_order_where_the_package_is_installed(unpacked: Path, tmp_path: Path) -> None:
    # Of this root only what the units name: systemd-analyze looks for programs and manual pages where it runs.
    units = [unpacked / "usr/lib/systemd/system" / name for name in ("moorage.service", "moorage-down.service")]
    for unit in units:
        text = unit.read_text().replace("/usr/bin/moorage", str(unpacked / "usr/bin/moorage"))
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *(tmp_path / unit.name for unit in units)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
