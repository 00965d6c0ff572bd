"""What scripts/deb puts together, without building: wheels in one directory, their copyright, versions of Python."""

import re
import zipfile
from pathlib import Path

import pytest
from _deb import PROJECT, lay_out, python_versions, unpack
from _deb_copyright import copyright_text

LICENCE = "License-Expression: MIT OR Apache-2.0"
MIT = "The MIT License\n\nCopyright (c) 2020 A. Holder (see AUTHORS).\n\nPermission is hereby granted\n"
APACHE = (
    "Apache License\nTERMS AND CONDITIONS FOR USE\n   Copyright [yyyy] [name of copyright owner]\n   Copyright 2019 B\n"
)


def wheel(folder: Path, version: str, files: dict[str, str], name: str = "lib") -> None:
    tag = f"cp3{version.removeprefix('3.')}"
    (folder / version).mkdir(parents=True, exist_ok=True)
    described = {
        f"{name}-1.dist-info/METADATA": f"Name: {name}\nVersion: 1\n{LICENCE}\n\nA long text.",
        f"{name}-1.dist-info/WHEEL": f"Tag: {tag}-{tag}-any\n",
    }
    files = {**files, **described}
    files[f"{name}-1.dist-info/RECORD"] = "".join(
        f'"{path}",sha256=x,1\n' if "," in path else f"{path},,\n" for path in files
    )
    with zipfile.ZipFile(folder / version / f"{name}-1-{tag}-{tag}-any.whl", "w") as file:
        for path, text in files.items():
            file.writestr(path, text)


def test_wheels_of_several_versions_share_one_directory(tmp_path: Path) -> None:
    for version in ("3.11", "3.13"):
        native = f"lib/_c.cpython-{version.replace('.', '')}-x86_64-linux-gnu.so"
        wheel(
            tmp_path / "wheels",
            version,
            {"lib/__init__.py": "#!/bin/python\nx = 1\n", native: version, "lib/_c.pyi": ""},
        )
    lay_out(tmp_path / "wheels", tmp_path / "root")
    site = tmp_path / "root/usr/lib/moorage/site"
    assert sorted(path.name for path in (site / "lib").iterdir()) == [
        "__init__.py",
        "_c.cpython-311-x86_64-linux-gnu.so",
        "_c.cpython-313-x86_64-linux-gnu.so",
    ]
    assert (site / "lib/__init__.py").read_text() == "#\nx = 1\n"
    assert [path.name for path in (site / "lib-1.dist-info").iterdir()] == ["METADATA"]
    assert (site / "lib-1.dist-info/METADATA").read_text().endswith(f"\n{LICENCE}\n")
    assert (site / "moorage/cli/main.py").exists()


def test_modules_that_differ_between_versions_are_refused(tmp_path: Path) -> None:
    for version in ("3.11", "3.13"):
        wheel(tmp_path, version, {"lib/__init__.py": f"made_for = {version!r}"})
    with pytest.raises(SystemExit, match=r"lib/__init__\.py of .* differs from that of another version of Python"):
        unpack(tmp_path, tmp_path / "site")


def test_the_copyright_names_holders_files_and_licences(tmp_path: Path) -> None:
    licences = {"lib-1.dist-info/licenses/LICENSE": MIT, "lib-1.dist-info/licenses/vendor/LICENSE": APACHE}
    wheel(tmp_path, "3.11", {"lib/__init__.py": "", "google/lib/a.py": "", **licences})
    wheel(tmp_path, "3.11", {"google/other/a.py": ""}, "other")
    unpack(tmp_path, tmp_path / "site")
    text = copyright_text(tmp_path / "site", Path("usr/lib/moorage/site"))
    own, one, other, last = text.split("\nFiles:")[1:] + text.rsplit("\n\n", 1)[1:]
    assert own.startswith(" *\nCopyright: The Moorage authors\nLicense: Apache-2.0\n")
    assert re.findall(r"^ (usr/.*)$", one, re.MULTILINE) == [
        "usr/lib/moorage/site/google/lib/*",
        "usr/lib/moorage/site/lib/*",
        "usr/lib/moorage/site/lib-1.dist-info/*",
    ]
    assert "Copyright:\n (c) 2020 A. Holder (see AUTHORS)\n 2019 B\nLicense: MIT-OR-Apache-2.0\n" in one
    assert " Permission is hereby granted\n" in one
    assert "TERMS AND CONDITIONS" not in one
    assert "yyyy" not in one
    assert "Copyright:\n The authors of other\n" in other
    assert last.startswith("License: Apache-2.0\n On Debian systems")


def test_the_package_is_for_every_python_that_the_project_names() -> None:
    assert python_versions() == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={python_versions()[0]}"
