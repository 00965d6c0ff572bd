"""What ``scripts/deb`` runs: control, changelog and copyright of the package, from what is in it."""

import email.message
import os
import re
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
MAINTAINER = f"{os.environ.get('DEBFULLNAME', 'Moorage')} <{os.environ.get('DEBEMAIL', 'moorage@localhost')}>"
CONTROL = """\
Package: moorage
Version: {version}
Section: admin
Priority: optional
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {next_python}), libc6, containerd | containerd.io, runc | containerd.io
Suggests: docker-cli
Description: Docker-format managed plugins on containerd
 Moorage runs plugins of Docker's format (volume, log, network, authorization
 and metrics drivers) on a containerd of its own, without a Docker daemon. It
 keeps them running, and finds them again after it was restarted or upgraded.
 .
 The Python libraries that it needs are in the package, in a directory of its
 own.
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: moorage
Comment: The libraries below /usr/lib/moorage/site keep their own licences. Their texts are beside them, in the
 directories NAME.dist-info.

Files: *
Copyright: the authors of Moorage
License: Apache-2.0
"""
APACHE = """
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
"""


def version() -> str:
    """The version; one that is on its way to it sorts before it, and after the commit before."""
    text = (CHECKOUT / "src/moorage/_version.py").read_text()
    (found,) = re.findall(r'^__version__ = "(.+)"$', text, re.MULTILINE)

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    count = git("rev-list", "--count", "HEAD")
    is_release = not count or f"v{found}" in git("tag", "--points-at", "HEAD").split()
    return str(found) if is_release else f"{found}~git{count}"


def changelog(number: str) -> str:
    """What users see of the newest version, as Debian writes it."""
    newest = (CHECKOUT / "CHANGELOG.md").read_text().split("\n## ")[1]
    items = [" ".join(item.split()) for item in re.findall(r"^- ((?:.+\n?)(?:  .*\n?)*)", newest, re.MULTILINE)]
    lines = [textwrap.fill(item, 78, initial_indent="  * ", subsequent_indent="    ") for item in items]
    at = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    head = f"moorage ({number}) unstable; urgency=medium\n\n"
    return head + "\n".join(lines) + f"\n\n -- {MAINTAINER}  {format_datetime(at)}\n"


def licence(metadata: email.message.Message) -> str:
    """What a library says of its licence."""
    if expression := metadata["License-Expression"]:
        return str(expression)
    named = [text.rpartition(":: ")[2] for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]
    return " and ".join(named) or str(metadata["License"]).splitlines()[0]


def places(folder: Path) -> str:
    """What of the package a library is: its entries in the directory of libraries."""
    listed = (line.split(",")[0].split("/")[0] for line in (folder / "RECORD").read_text().splitlines())
    found = sorted({name for name in listed if name not in ("", "..", "bin", "google", "__pycache__")})
    if "protobuf" in folder.name:
        found.append("google/protobuf")
    site = folder.parent
    return " ".join(f"usr/lib/moorage/site/{name}{'/*' if (site / name).is_dir() else ''}" for name in found)


def copyright_text(site: Path) -> str:
    """Ours, and one paragraph for each library."""
    text = COPYRIGHT
    for folder in sorted(site.glob("*.dist-info")):
        metadata = email.message_from_bytes((folder / "METADATA").read_bytes())
        if metadata["Name"] != "moorage":
            text += f"\nFiles: {places(folder)}\nCopyright: the authors of {metadata['Name']}\n"
            text += (
                f"License: {licence(metadata).replace(' ', '-')}\nComment: {metadata['Name']} {metadata['Version']}\n"
            )
    return text + APACHE


def main() -> None:
    """Write them into the laid-out package."""
    root, architecture = Path(sys.argv[1]), sys.argv[2]
    documents, number, (major, minor) = root / "usr/share/doc/moorage", version(), sys.version_info[:2]
    (documents / "copyright").write_text(copyright_text(root / "usr/lib/moorage/site"))
    (documents / "changelog").write_text(changelog(number))
    size = sum(path.lstat().st_size for path in (root / "usr").rglob("*")) // 1024
    control = CONTROL.format(
        version=number,
        architecture=architecture,
        maintainer=MAINTAINER,
        size=size,
        python=f"{major}.{minor}",
        next_python=f"{major}.{minor + 1}~",
    )
    (root / "DEBIAN/control").write_text(control)


if __name__ == "__main__":
    main()
