"""The Debian package: built, inspected, installed into a root of its own, run, removed."""

import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from moorage import __version__
from moorage.cli.main import COMMANDS
from moorage.plugins.apparmor import profiles_text
from support.engines import EngineProcess, engine
from support.service_manager import service_manager

pytestmark = [
    pytest.mark.long,
    pytest.mark.real,
    pytest.mark.needs("dpkg-shlibdeps", "py3compile", "lintian", "static-cc"),
]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"  # what the package is for
LINK = "etc/systemd/system/multi-user.target.wants/moorage.service"


def run(*command: str | Path, **more: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C.UTF-8", **more}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Built twice: from this checkout, and by another user from a copy of it in another directory."""
    folder = tmp_path_factory.mktemp("deb")
    elsewhere = folder / "a much longer name of a checkout"
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, elsewhere / name)
    other = {
        "GIT_DIR": run("git", "rev-parse", "--absolute-git-dir").strip(),
        "DEBFULLNAME": "Another User",
        "DEBEMAIL": "else@example.org",
        "USER": "else",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
        "PYTHON": sys.executable,
    }
    common = {"WHEELS": f"{folder}/wheels", "DPKG_DEB_COMPRESSOR_TYPE": "gzip"}  # xz takes half a minute
    build = 'umask "$1" && cd "$2" && exec scripts/deb "$3"'
    run("bash", "-c", build, "bash", "022", ROOT, folder / "first", **common)
    run("bash", "-c", build, "bash", "077", elsewhere, folder / "second", **common, **other)
    return [next((folder / name).glob("moorage_*.deb")) for name in ("first", "second")]


@pytest.fixture(scope="module")
def package(packages: list[Path]) -> Path:
    return packages[0]


@pytest.fixture(scope="module")
def unpacked(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    run("dpkg-deb", "-x", package, folder)
    run("py3compile", folder / "usr/lib/moorage")  # as its postinst does
    return folder


@pytest.mark.extensive
def test_the_same_commit_gives_the_same_bytes(packages: list[Path]) -> None:
    first, second = packages
    assert first.name == second.name
    assert hashlib.sha256(first.read_bytes()).digest() == hashlib.sha256(second.read_bytes()).digest()


def test_the_control_file_says_what_it_needs(package: Path) -> None:
    fields = dict(re.findall(r"^ (\S+): (.*)$", run("dpkg-deb", "-I", package), re.MULTILINE))
    assert fields["Package"] == "moorage"
    assert re.fullmatch(rf"{re.escape(__version__)}(~git\d+)?-1", fields["Version"])
    assert fields["Maintainer"] == "The Moorage authors <moorage@example.org>"
    needed = fields["Depends"].split(", ")
    assert needed[:2] == ["python3 (>= 3.11)", "python3 (<< 3.14~)"]
    assert needed[-2:] == ["containerd | containerd.io", "runc | crun | containerd.io"]
    (libc,) = (re.fullmatch(r"libc6 \(>= 2\.(\d+)\)", name) for name in needed if name.startswith("libc6 "))
    assert libc is not None
    assert int(libc[1]) <= 36, "Debian 12 has 2.36"
    assert {name.split()[0] for name in needed[2:-2]} <= {"libc6", "libgcc-s1", "libstdc++6"}
    assert fields["Recommends"] == "crun"
    for script in ("postinst", "prerm", "postrm", "rtupdate"):
        run("sh", "-n", ROOT / f"packaging/debian/{script}")


@pytest.mark.extensive
def test_each_native_library_is_there_for_every_python(unpacked: Path) -> None:
    site = unpacked / "usr/lib/moorage/site"
    found: dict[str, set[str]] = {}
    for path in site.rglob("*.so"):
        if match := re.fullmatch(r"(.+)\.cpython-(\d+)-.+\.so", str(path.relative_to(site))):
            found.setdefault(match[1], set()).add(match[2])
        else:
            assert path.name.endswith(".abi3.so"), path
    assert {"uvloop/loop", "msgspec/_core", "_cffi_backend"} <= set(found)
    assert {name: tags for name, tags in found.items() if tags != {"311", "312", "313"}} == {}


def test_it_has_everything_and_nothing_of_this_machine(package: Path, unpacked: Path) -> None:
    listed = run("dpkg-deb", "-c", package).splitlines()
    assert all(line.split()[1] == "root/root" for line in listed)
    names = {line.split()[5].removeprefix("./") for line in listed}
    assert {"usr/bin/moorage", "usr/lib/moorage/site/moorage/cli/main.py"} <= names
    assert {f"usr/lib/systemd/system/{unit.name}" for unit in (ROOT / "packaging").glob("moorage*.*")} <= names
    assert {f"usr/share/man/man1/moorage-{name}.1.gz" for name in COMMANDS} <= names
    for helper in ("mount.moorage", "umount.moorage"):
        assert {f"usr/sbin/{helper}", f"usr/share/man/man8/{helper}.8.gz"} <= names
    for shares in (
        "bash-completion/completions/moorage",
        "zsh/vendor-completions/_moorage",
        "fish/vendor_completions.d/moorage.fish",
    ):
        assert (unpacked / "usr/share" / shares).stat().st_size > 0
    assert not any(name.endswith((".pyc", ".pyi")) for name in names)
    files = {name for name in names if name.startswith("etc/") and not name.endswith("/")}
    assert files == {"etc/apparmor.d/moorage"}
    assert run("dpkg-deb", "-I", package, "conffiles").split() == ["/etc/apparmor.d/moorage"]
    assert (unpacked / "etc/apparmor.d/moorage").read_text() == profiles_text()
    for path in unpacked.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert str(ROOT).encode() not in path.read_bytes(), path


def test_its_texts_are_as_debian_has_them(unpacked: Path) -> None:
    documents = unpacked / "usr/share/doc/moorage"
    log = gzip.decompress((documents / "changelog.Debian.gz").read_bytes()).decode()
    assert re.match(rf"moorage \({re.escape(__version__)}\S*-1\) unstable; urgency=medium\n\n  \* ", log)
    assert "\n -- The Moorage authors <moorage@example.org>  " in log
    assert gzip.decompress((documents / "changelog.gz").read_bytes()) == (ROOT / "CHANGELOG.md").read_bytes()
    copyrights = (documents / "copyright").read_text()
    site = unpacked / "usr/lib/moorage/site"
    claimed = re.findall(r"^ usr/lib/moorage/site/(.+)$", copyrights, re.MULTILINE)
    for path in site.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            name = str(path.relative_to(site))
            owners = [claim for claim in claimed if fnmatchcase(name, claim)]
            assert len(owners) == (0 if name.startswith("moorage/") else 1), name
    assert "Permission is hereby granted" in copyrights
    assert "TERMS AND CONDITIONS FOR USE" not in copyrights  # of Apache's licence Debian has the text


def test_it_runs_from_where_it_was_unpacked_without_writing_there(unpacked: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in unpacked.rglob("*")}
    program = unpacked / "usr/bin/moorage"
    assert f"moorage     {__version__}\n" in run(program, "version", PYTHONPATH="/nowhere")
    assert "Usage: moorage serve" in run(program, "serve", "--help")
    code = f"import runpy; runpy.run_path({str(program)!r}); import aiohttp; print(aiohttp.__file__)"
    assert run(PYTHON, "-IB", "-c", code).startswith(f"{unpacked}/usr/lib/moorage/site/")
    assert {path: path.lstat().st_mtime_ns for path in unpacked.rglob("*")} == before


def test_its_engine_serves_as_the_unit_starts_it(unpacked: Path, tmp_path: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", (ROOT / "packaging/moorage.service").read_text(), re.MULTILINE)
    program, *words = line.split()
    with engine(tmp_path) as house, service_manager(f"{tmp_path}/notify") as notifications:
        house.end()
        house.child = start(house, [str(unpacked) + program, *words], NOTIFY_SOCKET=f"{tmp_path}/notify")
        notifications.until("READY", "1")
        assert notifications.senders == {house.child.pid}  # the program itself, as NotifyAccess=main wants it
        house.wait_until(lambda: house.info()["Moorage"]["Problem"] == "", "containerd is found")
        assert house.end() == 0
        house.start()


def start(house: EngineProcess, command: list[str], **more: str) -> "subprocess.Popen[bytes]":
    roots = {"MOORAGE_ROOT": str(house.root), "MOORAGE_EXEC_ROOT": str(house.exec_root)}
    with house.log.open("ab") as log:
        surroundings = {"PATH": os.environ["PATH"], **roots, **more}
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
    local = tmp_path / "etc/apparmor.d/local/moorage"
    assert local.read_text() == ""
    local.write_text("# a rule\n")
    dpkg(tmp_path, "--install", package)
    assert local.read_text() == "# a rule\n"
    data = tmp_path / "var/lib/moorage/plugins"
    data.mkdir(parents=True)
    dpkg(tmp_path, "--remove", "moorage")
    assert data.exists()
    assert not (tmp_path / "usr/bin/moorage").exists()
    assert not (tmp_path / "usr/lib/moorage").exists()
    dpkg(tmp_path, "--purge", "moorage")
    assert not data.parent.exists()
    assert not (tmp_path / "etc/apparmor.d").exists()
    assert not (tmp_path / LINK).is_symlink()


# In a view of this machine's root that ends with the command: without network, services, and engines that run here.
VIEW = """
set -euo pipefail
room=$1 && shift
mount -t tmpfs tmpfs "$room"
mkdir "$room"/{changed,work,root}
mount -t overlay -o lowerdir=/,upperdir="$room/changed",workdir="$room/work" overlay "$room/root"
for folder in proc dev; do mount --rbind /$folder "$room/root/$folder"; done
for folder in run tmp; do mount -t tmpfs tmpfs "$room/root/$folder"; done
rm -rf "$room/root/var/lib/moorage" "$room/root/etc/default/moorage"
cp "$1" "$room/root/tmp/"
exec chroot "$room/root" bash -euo pipefail -c "$2"
"""
INSTALLED = r"""
export DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /tmp
compiled() { find /usr/lib/moorage -name '*.pyc' | wc -l; }
sources=$(dpkg-deb -c moorage_*.deb | grep -c '/usr/lib/moorage/.*\.py$')
apt-get --quiet=2 --no-install-recommends --yes install ./moorage_*.deb
[ "$(compiled)" = "$sources" ] || { echo "$(compiled) of $sources are compiled"; exit 1; }
moorage version
moorage ls && exit 1 # there is no engine
[ "$(compiled)" = "$sources" ]
dpkg --verify moorage
# What python3 does when it becomes another version.
find /usr/lib/moorage -name '*.pyc' | sed -n 1~2p | xargs rm
/usr/share/python3/runtime.d/moorage.rtupdate rtupdate python3.0 "$(py3versions --default)"
[ "$(compiled)" = "$sources" ]
dpkg --install ./moorage_*.deb # an upgrade
[ "$(compiled)" = "$sources" ]
mkdir -p /var/lib/moorage/plugins
dpkg --remove moorage
! [ -e /usr/lib/moorage ] && [ -d /var/lib/moorage/plugins ]
dpkg --purge moorage
! [ -e /var/lib/moorage ]
echo "all of it"
"""


@pytest.mark.extensive
def test_apt_installs_it_without_network_and_it_is_compiled(package: Path, tmp_path: Path) -> None:
    apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    output = run(*apart, "bash", "-c", VIEW, "bash", tmp_path, package, INSTALLED)
    assert output.endswith("all of it\n")
    assert f"moorage     {__version__}\n" in output


@pytest.mark.extensive
def test_lintian_finds_nothing_to_say(package: Path) -> None:
    assert run("lintian", "--allow-root", "--fail-on=error,warning", package) == ""


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
