"""Writes the directory of a new plugin: program, config.json, tests, README, and a copy of the kit.

The templates are files beside this one, with ``@NAME@`` and a few more marks in them.
"""

import json
import os
import re
import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from moorage import errors

__all__ = ("KINDS", "copy_kit", "create_plugin_directory")

KINDS = ("volume", "log", "authz", "network", "ipam", "metrics")
"""Of plugins; each has a folder of templates."""

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}
_USR = {
    "name": "usr",
    "description": "The host's /usr: Python, its library and the dynamic loader",
    "type": "bind",
    "source": "/usr",
    "destination": "/usr",
    "options": ["rbind", "ro"],
}
_DEBUG = {"name": "DEBUG", "description": "1 logs every call", "settable": ["value"], "value": "0"}
_TYPES = {
    "volume": "docker.volumedriver/1.0",
    "log": "docker.logdriver/1.0",
    "authz": "docker.authz/1.0",
    "network": "docker.networkdriver/1.0",
    "ipam": "docker.ipamdriver/1.0",
    "metrics": "docker.metricscollector/1.0",
}
_MORE: dict[str, dict[str, Any]] = {
    "volume": {"propagatedMount": "/mnt/volumes", "linux": {"capabilities": ["CAP_SYS_ADMIN"]}},
    "network": {"network": {"type": "host"}, "linux": {"capabilities": ["CAP_NET_ADMIN"]}},
}


def create_plugin_directory(kind: str, name: str, parent: Path) -> Path:
    """Write a new plugin of one of the ``KINDS`` into ``parent/name`` (blocking); its path.

    Raises:
        errors.Invalid: the name is not possible, or the directory cannot be written
        errors.Conflict: the directory exists
    """
    if not _NAME.fullmatch(name):
        raise errors.Invalid(f"cannot create {name}: a name has lower-case letters, digits and single hyphens")
    directory = parent / name
    try:
        directory.mkdir()
    except FileExistsError as error:
        raise errors.Conflict(f"cannot create {directory}: it exists") from error
    except OSError as error:
        raise errors.Invalid(f"cannot create {directory}: {error.strerror}") from error
    marks = {
        "@NAME@": name,
        "@MODULE@": name.replace("-", "_"),
        "@CLASS@": "".join(word.capitalize() for word in name.split("-")),
        "@KIND@": kind,
    }
    try:
        _write(directory, kind, marks)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise errors.Invalid(f"cannot create {directory}: {error.strerror}") from error
    return directory


def _write(directory: Path, kind: str, marks: dict[str, str]) -> None:
    templates = resources.files("moorage.scaffold") / "templates"
    root = directory / "rootfs"
    (root / "plugin").mkdir(parents=True)
    (root / "usr").mkdir()
    (root / "usr/.gitkeep").touch()  # git has no empty directories
    (directory / "tests").mkdir()
    for link, target in _LINKS.items():
        (root / link).symlink_to(target)
    config = _config(kind, marks)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for template, path in (
        (templates / kind / "program.py.in", root / "plugin" / f"{marks['@MODULE@']}.py"),
        (templates / kind / "test.py.in", directory / "tests" / f"test_{marks['@MODULE@']}.py"),
        (templates / "README.md.in", directory / "README.md"),
    ):
        path.write_text(_filled(template.read_text(), marks))
    copy_kit(directory)


def _config(kind: str, marks: dict[str, str]) -> dict[str, Any]:
    return {
        "description": f"{marks['@NAME@']}, a plugin of kind {kind}",
        "documentation": "",
        "interface": {"types": [_TYPES[kind]], "socket": f"{marks['@NAME@']}.sock"},
        # -S, -E and -B: a quick start, not influenced by the host's packages, without writing beside the program
        "entrypoint": ["/usr/bin/python3", "-E", "-s", "-S", "-B", f"/plugin/{marks['@MODULE@']}.py"],
        "network": {"type": "none"},
        "mounts": [_USR],
        "env": [_DEBUG],
        **_MORE.get(kind, {}),
    }


def _filled(text: str, marks: dict[str, str]) -> str:
    for mark, value in marks.items():
        text = text.replace(mark, value)
    return text


def copy_kit(directory: Path) -> Path:
    """Copy the kit into a plugin's directory, where its program imports it; one that exists is replaced (blocking).

    Raises:
        errors.NotFound: there is no ``rootfs/plugin`` in the directory
        errors.Invalid: it cannot be written
    """
    programs = directory / "rootfs" / "plugin"
    if not programs.is_dir():
        raise errors.NotFound(f"cannot copy the kit: {programs} is not a directory")
    target = programs / "moorage" / "kit"
    half = target.with_name(f".kit-{os.getpid()}")
    try:
        half.parent.mkdir(exist_ok=True)
        _copy(resources.files("moorage") / "kit", half)
        shutil.rmtree(target, ignore_errors=True)
        half.rename(target)
    except OSError as error:
        raise errors.Invalid(f"cannot copy the kit to {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def _copy(source: Traversable, target: Path) -> None:
    target.mkdir()
    for each in source.iterdir():
        if each.is_dir():
            if each.name != "__pycache__":
                _copy(each, target / each.name)
        elif each.name.endswith(".py"):
            (target / each.name).write_bytes(each.read_bytes())
