"""The copyright file of the Debian package, from the licences that the wheels of the libraries have with them."""

import email.message
import re
from pathlib import Path

HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: moorage
Comment: The libraries in /usr/lib/moorage/site are as their authors publish
 them, without what is not needed where they run.

Files: *
Copyright: The Moorage authors
License: Apache-2.0
"""
TAIL = """
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
"""
REFERENCE = "The text of the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0 on Debian systems."
LICENCE = re.compile(r"(licen[cs]e|copying|notice|authors)\b.*", re.IGNORECASE)
HOLDER = re.compile(r"^\W*(Copyright\b(?:.*\d{4}| [^\[{o]).*?)[\s.]*$", re.MULTILINE)


def _named(metadata: email.message.Message) -> str:
    """What a library calls its licence, as one word."""
    if expression := metadata["License-Expression"]:
        return str(expression).replace(" ", "-")
    named = [text.rpartition(":: ")[2] for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]
    return re.sub(r"[^A-Za-z0-9.+]+", "-", " and ".join(named) or str(metadata["License"]).splitlines()[0]).strip("-")


def _texts(folder: Path) -> str:
    """All of its licences and notices, one after the other; the longest and most frequent is where Debian has it."""
    texts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and LICENCE.fullmatch(path.name)):
        text = path.read_text(errors="replace").strip("\n")
        is_apache = "Apache License" in text and "TERMS AND CONDITIONS FOR USE" in text
        texts.append("\n".join([*HOLDER.findall(text), REFERENCE]) if is_apache else text)
    return "\n\n".join(texts)


def _owned(folder: Path, site: Path, below: Path) -> str:
    """What of the package a library is: its entries in the directory of libraries."""
    listed = [line.rsplit(",", 2)[0] for line in (folder / "RECORD").read_text().splitlines()]
    # google/ is a namespace that several libraries may share.
    depth = {name: 2 if name.startswith("google/") else 1 for name in listed}
    found = {"/".join(name.split("/")[: depth[name]]) for name in listed}
    names = sorted(name for name in found if (site / name).exists())
    return "\n ".join(f"{below}/{name}{'/*' if (site / name).is_dir() else ''}" for name in names)


def _indented(text: str) -> str:
    return "".join(f" {line.rstrip()}\n" if line.strip() else " .\n" for line in text.expandtabs().splitlines())


def copyright_text(site: Path, below: Path) -> str:
    """Moorage's, and one paragraph for each library that is laid out in `site`; `below` is its path in the package."""
    text = HEAD
    for folder in sorted(site.glob("*.dist-info")):
        metadata = email.message_from_bytes((folder / "METADATA").read_bytes())
        licence = _texts(folder)
        holders = list(dict.fromkeys(HOLDER.findall(licence))) or [f"The authors of {metadata['Name']}"]
        text += f"\nFiles:\n {_owned(folder, site, below)}\n"
        text += "Copyright:\n" + _indented("\n".join(holder.removeprefix("Copyright ") for holder in holders))
        text += f"License: {_named(metadata)}\n{_indented(licence) or ' As in its METADATA.' + chr(10)}"
        text += f"Comment: {metadata['Name']} {metadata['Version']}\n"
    return text + TAIL
