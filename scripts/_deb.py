"""What ``scripts/deb`` runs: the directory of the program and its libraries, then the texts that describe the package.

``versions`` and ``requirements`` print what is to be downloaded, one a line; ``site WHEELS ROOT`` unpacks it;
``texts ROOT ARCHITECTURE NEEDED`` writes control, changelog and copyright.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from _deb_copyright import copyright_text

CHECKOUT = Path(__file__).parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
SITE = Path("usr/lib/moorage/site")
MAINTAINER = "{name} <{email}>".format(**PROJECT["authors"][0])
CONTROL = """\
Package: moorage
Version: {version}
Section: admin
Priority: optional
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {python}, {needed}, containerd | containerd.io, runc | crun | containerd.io
Recommends: crun
Suggests: apparmor, docker-cli
Description: Docker-format managed plugins on containerd
 Moorage runs plugins of Docker's format (volume, log, network, authorization
 and metrics drivers) on a containerd of its own, without a Docker daemon. It
 keeps them running, and finds them again after it was restarted or upgraded.
 .
 The Python libraries that it needs are in the package, in a directory of its
 own, for each version of Python that the package depends on.
"""
CHANGELOG = """\
moorage ({version}) unstable; urgency=medium

  * Package this version of Moorage. What users see of it is in changelog.gz.

 -- {maintainer}  {date}
"""

# What of a wheel is not needed where it runs: declarations and sources of what is compiled, and two extension modules.
# That of PyYAML is for its C loader, which is not used, and contains a libyaml that Debian's updates do not reach.
UNUSED = re.compile(
    r".*\.(pyi|pyx|pxd|pxi|h)|.*/py\.typed|yaml/_yaml\..*\.so|multidict/_testcapi\..*\.so|[^/]+\.data/.*"
)
# What describes one wheel and not the library; all of them are needed until the copyright file is written.
OWN_TO_A_WHEEL = re.compile(r"[^/]+\.dist-info/(RECORD|WHEEL)")


def python_versions() -> list[str]:
    """Those that the project is made for, oldest first."""
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text) for text in PROJECT["classifiers"])
    return sorted((match[1] for match in found if match), key=lambda version: int(version.split(".")[1]))


def requirements() -> list[str]:
    """What the program needs: the requirements of the library and those of its extra ``engine``."""
    extras, found, waiting = PROJECT["optional-dependencies"], list(PROJECT["dependencies"]), ["engine"]
    while waiting:
        for text in extras[waiting.pop()]:
            own = re.fullmatch(r"moorage\[(\w+)\]", text)
            waiting += [own[1]] if own else []
            found += [] if own else [text]
    return found


def unpack(wheels: Path, site: Path) -> None:
    """Lay the wheels of all versions into one directory.

    Extension modules bear their version of Python in their names, so each Python finds its own. Everything else must be
    the same in all wheels of a library.

    Raises:
        SystemExit: two wheels differ in a file that both have.
    """
    for path in sorted(wheels.glob("*/*.whl"), key=lambda path: (path.name, path.parent)):
        with zipfile.ZipFile(path) as wheel:
            for entry in wheel.infolist():
                target = site / entry.filename
                if entry.is_dir() or UNUSED.fullmatch(entry.filename):
                    continue
                data = wheel.read(entry)
                target.parent.mkdir(parents=True, exist_ok=True)
                if OWN_TO_A_WHEEL.fullmatch(entry.filename):
                    with target.open("ab") as file:
                        file.write(data)
                    continue
                if target.exists() and target.read_bytes() != data:
                    sys.exit(f"deb: {entry.filename} of {path.name} differs from that of another version of Python")
                target.write_bytes(data)


def without_interpreter(site: Path) -> None:
    """Remove first lines that name an interpreter: these are modules and no programs."""
    for path in site.rglob("*.py"):
        data = path.read_bytes()
        if data.startswith(b"#!"):
            path.write_bytes(b"#\n" + data.partition(b"\n")[2])  # the same number of lines


def lay_out(wheels: Path, root: Path) -> None:
    """Write the program, its libraries and their copyright."""
    site = root / SITE
    unpack(wheels, site)
    without_interpreter(site)
    documents = root / "usr/share/doc/moorage"
    documents.mkdir(parents=True)
    (documents / "copyright").write_text(copyright_text(site, SITE))
    for path in sorted(site.glob("*.dist-info/**/*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        elif path.name != "METADATA":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes().partition(b"\n\n")[0] + b"\n")
    shutil.copytree(
        CHECKOUT / "src/moorage", site / "moorage", ignore=shutil.ignore_patterns("__pycache__", "*.pyi", "py.typed")
    )


def version() -> str:
    """The version; one that is on its way to it sorts before it, and after the commit before."""
    text = (CHECKOUT / "src/moorage/_version.py").read_text()
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    count = git("rev-list", "--count", "HEAD")
    is_release = not count or f"v{found}" in git("tag", "--points-at", "HEAD").split()
    return f"{found}-1" if is_release else f"{found}~git{count}-1"


def installed_size(root: Path) -> int:
    """KiB as Debian counts them: each file rounded up, one for everything else."""
    paths = (path for folder in root.iterdir() if folder.name != "DEBIAN" for path in [folder, *folder.rglob("*")])
    return sum(-(-path.lstat().st_size // 1024) if path.is_file() else 1 for path in paths)


def write_texts(root: Path, architecture: str, needed: str) -> None:
    """Write control, changelog, and which files are the administrator's."""
    versions = python_versions()
    following = f"3.{int(versions[-1].split('.')[1]) + 1}~"
    number = version()
    at = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    log = CHANGELOG.format(version=number, maintainer=MAINTAINER, date=format_datetime(at))
    (root / "usr/share/doc/moorage/changelog.Debian").write_text(log)
    control = CONTROL.format(
        version=number,
        architecture=architecture,
        maintainer=MAINTAINER,
        size=installed_size(root),
        python=f"python3 (>= {versions[0]}), python3 (<< {following})",
        needed=needed,
    )
    (root / "DEBIAN/control").write_text(control)
    if settings := sorted(path for path in (root / "etc").rglob("*") if path.is_file()):
        (root / "DEBIAN/conffiles").write_text("".join(f"/{path.relative_to(root)}\n" for path in settings))


def main() -> None:
    """Do the one step that ``scripts/deb`` asks for."""
    match sys.argv[1:]:
        case ["versions"]:
            print(*python_versions(), sep="\n")
        case ["requirements"]:
            print(*requirements(), sep="\n")
        case ["site", wheels, root]:
            lay_out(Path(wheels), Path(root))
        case ["texts", root, architecture, needed]:
            write_texts(Path(root), architecture, needed)
        case words:
            sys.exit(f"deb: no such step: {words}")


if __name__ == "__main__":
    main()
