"""Why an entrypoint did not run, in words. Asked after a failure only, so that a wrong guess refuses nothing.

Everything here blocks: call it in a worker thread.
"""

import os
import posixpath
import stat
from collections.abc import Sequence

from msgspec import Struct

from moorage.containerd.types import Spec

__all__ = ("explain",)

_LINKS = 40  # as many as the kernel follows
_FOREIGN_BUT_FINE = {("EM_X86_64", "EM_386"), ("EM_AARCH64", "EM_ARM")}


class _Mount(Struct, frozen=True):
    destination: str
    source: str | None
    """Path on the host; None for a file system of its own, into which we cannot look."""


def explain(spec: Spec, root: str) -> str:
    """A sentence on why the first of ``spec["process"]["args"]`` cannot run in ``root``; empty where it seems fine."""
    try:
        return _explain(spec, root)
    except (_Hidden, OSError):  # what cannot be looked at is not explained
        return ""


def _explain(spec: Spec, root: str) -> str:
    process = spec["process"]
    mounts = [
        _Mount(posixpath.normpath(each["destination"]), each["source"] if _is_bind(each) else None)
        for each in spec.get("mounts", ())
    ]
    view = _View(root, mounts)
    command, variables = process["args"][0], dict(entry.split("=", 1) for entry in process.get("env", ()))
    if "/" in command:
        return _explain_file(view, posixpath.join(process.get("cwd") or "/", command))
    directories = variables.get("PATH", "").split(":")
    for directory in directories:
        found = view.find(posixpath.join("/", directory, command))
        if found is not None and os.path.isfile(found):
            return _explain_file(view, posixpath.join("/", directory, command))
    return f"there is no {command} in the plugin's PATH ({':'.join(directories)})"


def _explain_file(view: "_View", path: str) -> str:
    found = view.find(path)
    if found is None:
        return f"there is no {path} in the plugin's root file system"
    status = os.stat(found)
    if stat.S_ISDIR(status.st_mode):
        return f"{path} is a directory, not a program"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a file that can be run"
    if not status.st_mode & 0o111:
        return f"{path} is not executable; make it so with chmod +x"
    if os.statvfs(found).f_flag & os.ST_NOEXEC:
        return f"{path} is on a file system that is mounted noexec (at {_mount_point(found)})"
    return _explain_contents(view, path, found)


def _explain_contents(view: "_View", path: str, found: str) -> str:
    with open(found, "rb") as file:
        head = file.read(256)
    if head.startswith(b"#!"):
        line = head.split(b"\n", 1)[0][2:].split()
        interpreter = os.fsdecode(line[0]) if line else ""
        if not interpreter or view.find(interpreter) is None:
            return f"{path} is a script for {_shown(interpreter) or 'nothing'}, which is not in the plugin"
        return ""
    if not head.startswith(b"\x7fELF"):
        return f"{path} is neither a program of this machine nor a script that starts with #!"
    return _explain_program(view, path, found)


def _explain_program(view: "_View", path: str, found: str) -> str:
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    def machine(file_path: str) -> tuple[str, str, str]:
        with open(file_path, "rb") as file:
            elf = ELFFile(file)
            parts = elf.iter_segments(type="PT_INTERP")
            interpreters = (part.get_interp_name() for part in parts if isinstance(part, InterpSegment))
            return elf["e_machine"], elf.get_machine_arch(), next(interpreters, "")

    try:
        name, readable, loader = machine(found)
    except (ELFError, OSError, ValueError):
        return f"{path} is damaged: its program headers cannot be read"
    ours, ours_readable, _ = machine("/proc/self/exe")
    if name != ours and (ours, name) not in _FOREIGN_BUT_FINE:
        return f"{path} is a program for another CPU ({readable}; this machine is {ours_readable})"
    if loader and view.find(loader) is None:
        return f"{path} needs the loader {_shown(loader)}, which is not in the plugin's root file system"
    return ""


class _Hidden(Exception):
    """A path lies in a file system that only exists inside, so that nothing can be said of it."""


class _View:
    """The files as the plugin sees them, without entering its mount namespace."""

    def __init__(self, root: str, mounts: Sequence[_Mount]) -> None:
        self._root = root
        self._mounts = mounts

    def find(self, path: str) -> str | None:
        """The host's path of a file of the plugin, links followed as from inside; None where there is none.

        Raises: _Hidden.
        """
        rest = [part for part in path.split("/") if part]
        seen, links = "/", 0
        while rest:
            part = rest.pop(0)
            if part in (".", ".."):
                seen = posixpath.normpath(posixpath.join(seen, part))
                continue
            step = posixpath.join(seen, part)
            host = self._on_host(step)
            if not os.path.lexists(host):
                return None
            if os.path.islink(host):
                links += 1
                if links > _LINKS:
                    return None
                target = os.readlink(host)
                rest = [each for each in target.split("/") if each] + rest
                seen = "/" if target.startswith("/") else seen
            else:
                seen = step
        return self._on_host(seen)

    def _on_host(self, path: str) -> str:
        best = _Mount("/", self._root)
        for mount in self._mounts:
            inside = path == mount.destination or path.startswith(mount.destination.rstrip("/") + "/")
            if inside and len(mount.destination) >= len(best.destination):
                best = mount
        if best.source is None:
            raise _Hidden
        rest = posixpath.relpath(path, best.destination)
        return os.path.realpath(best.source) if rest == "." else posixpath.join(best.source, rest)


def _is_bind(mount: Spec) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def _shown(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _mount_point(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
