"""Why an entrypoint did not run, as text. Queried after a failure only, so that a wrong guess refuses nothing.

The files are the plugin's: they are opened beneath its root, little of them is read, and whoever waits does so for a
second at most. Everything here blocks: call it in a worker thread.
"""

import io
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from msgspec import Struct

from moorage import errors
from moorage._lib.bounded import call_bounded
from moorage.containerd.types import Spec
from moorage.host.beneath import open_beneath
from moorage.plugins.confinement import without_init

__all__ = ("explain",)

_LINKS = 40  # as many as the kernel follows
_WITHIN = 1.0  # seconds for all of it
_HEAD_BYTES = 64 * 1024  # of a program; its program headers are at the beginning of every real one
_FOREIGN_BUT_FINE = {("EM_X86_64", "EM_386"), ("EM_AARCH64", "EM_ARM")}


class _Mount(Struct, frozen=True):
    destination: str
    source: str | None
    """Path on the host; None for a file system of its own, whose files cannot be seen from here."""


class _Found(Struct, frozen=True):
    """A file of the plugin: a path without symbolic links beneath an open file or directory."""

    base: int
    path: str
    """"." for the base itself, which may be a file."""

    def open(self, flags: int) -> int:
        """A descriptor of it. Raises: OSError."""
        if self.path == ".":
            return os.open(f"/proc/self/fd/{self.base}", flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
        return open_beneath(self.base, self.path, flags, crosses_mounts=True)


def explain(spec: Spec, root: str, *, owner: str = "") -> str:
    """A sentence on why the first of ``spec["process"]["args"]`` cannot run in ``root``; empty where it seems fine.

    Also empty where that cannot be found out within a second. ``owner`` is the plugin's id.
    """
    try:
        return call_bounded(lambda: _explain(spec, root), _WITHIN, "explain why the plugin did not run", owner=owner)
    except (_Hidden, OSError, errors.Unavailable):  # what cannot be seen is not explained
        return ""


def _explain(spec: Spec, root: str) -> str:
    process = spec["process"]
    mounts = [
        _Mount(posixpath.normpath(each["destination"]), each["source"] if _is_bind(each) else None)
        for each in spec.get("mounts", ())
    ]
    command, variables = without_init(process["args"])[0], dict(entry.split("=", 1) for entry in process.get("env", ()))
    with _open_view(root, mounts) as view:
        if "/" in command:
            return _explain_file(view, posixpath.join(process.get("cwd") or "/", command))
        directories = variables.get("PATH", "").split(":")
        for directory in directories:
            path = posixpath.join("/", directory, command)
            found = view.find(path)
            if found is not None and stat.S_ISREG(_status(found).st_mode):
                return _explain_file(view, path)
        return f"there is no {command} in the plugin's PATH ({':'.join(directories)})"


def _explain_file(view: "_View", path: str) -> str:
    found = view.find(path)
    if found is None:
        return f"there is no {path} in the plugin's root file system"
    mode = _status(found).st_mode
    if stat.S_ISDIR(mode):
        return f"{path} is a directory, not a program"
    if not stat.S_ISREG(mode):
        return f"{path} is not a file that can be run"
    if not mode & 0o111:
        return f"{path} is not executable; make it so with chmod +x"
    descriptor = found.open(os.O_RDONLY | os.O_NONBLOCK)
    try:
        if os.fstatvfs(descriptor).f_flag & os.ST_NOEXEC:
            return f"{path} is on a file system that is mounted noexec (at {_mount_point(view.host_path(path))})"
        return _explain_contents(view, path, os.pread(descriptor, _HEAD_BYTES, 0))
    finally:
        os.close(descriptor)


def _explain_contents(view: "_View", path: str, head: bytes) -> str:
    if head.startswith(b"#!"):
        line = head[:256].split(b"\n", 1)[0][2:].split()
        interpreter = os.fsdecode(line[0]) if line else ""
        if not interpreter or view.find(interpreter) is None:
            return f"{path} is a script for {_shown(interpreter) or 'nothing'}, which is not in the plugin"
        return ""
    if not head.startswith(b"\x7fELF"):
        return f"{path} is neither a program of this machine nor a script that starts with #!"
    return _explain_program(view, path, head)


def _explain_program(view: "_View", path: str, head: bytes) -> str:
    from elftools.common.exceptions import ELFError

    try:
        name, readable, loader = _read_program(head)
    except (ELFError, OSError, ValueError, KeyError, AttributeError, TypeError, UnicodeDecodeError, OverflowError):
        return f"{path} is damaged: its program headers cannot be read"
    with open("/proc/self/exe", "rb") as file:
        ours, ours_readable, _ = _read_program(file.read(_HEAD_BYTES))
    if name != ours and (ours, name) not in _FOREIGN_BUT_FINE:
        return f"{path} is a program for another CPU ({readable}; this machine is {ours_readable})"
    if loader and view.find(loader) is None:
        return f"{path} needs the loader {_shown(loader)}, which is not in the plugin's root file system"
    return ""


def _read_program(head: bytes) -> tuple[str, str, str]:
    """Machine, its readable name and the loader of an ELF program whose first bytes these are.

    Raises: what pyelftools raises for headers that make no sense, of many kinds.
    """
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import InterpSegment

    elf = ELFFile(io.BytesIO(_without_sections(head)))
    parts = elf.iter_segments(type="PT_INTERP")
    interpreters = (part.get_interp_name() for part in parts if isinstance(part, InterpSegment))
    return elf["e_machine"], elf.get_machine_arch(), next(interpreters, "")


def _without_sections(head: bytes) -> bytes:
    """The head of an ELF file that claims to have no section headers: they are at its end, and not needed here.

    Source: elf(5), e_shoff, e_shnum and e_shstrndx of both classes.
    """
    is_64 = head[4:5] == b"\x02"
    offset, size, numbers = (0x28, 8, 0x3C) if is_64 else (0x20, 4, 0x30)
    made = bytearray(head.ljust(64, b"\0"))
    made[offset : offset + size] = bytes(size)
    made[numbers : numbers + 4] = bytes(4)
    return bytes(made)


class _Hidden(Exception):
    """A path is in a file system that only exists inside, so that nothing can be said of it."""


class _View:
    """The files as the plugin sees them, without entering its mount namespace."""

    def __init__(self, mounts: Sequence[tuple[_Mount, int | None]]) -> None:
        """``mounts`` with the open source of each, None where there is none; the root first."""
        self._mounts = mounts

    def find(self, path: str) -> _Found | None:
        """A file of the plugin, links followed as from inside; None where there is none.

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
            try:
                target = _read_link(self._beneath(step))
            except OSError:
                return None
            if target is None:
                seen = step
                continue
            links += 1
            if links > _LINKS:
                return None
            rest = [each for each in target.split("/") if each] + rest
            seen = "/" if target.startswith("/") else seen
        return self._beneath(seen)

    def host_path(self, path: str) -> str:
        """Where a path of the plugin is on the host, for people."""
        mount, _ = self._mount_of(path)
        return posixpath.join(mount.source or "/", posixpath.relpath(path, mount.destination))

    def _beneath(self, path: str) -> _Found:
        mount, base = self._mount_of(path)
        if mount.source is None:
            raise _Hidden
        if base is None:
            raise FileNotFoundError(mount.source)
        return _Found(base, posixpath.relpath(path, mount.destination))

    def _mount_of(self, path: str) -> tuple[_Mount, int | None]:
        best = self._mounts[0]
        for mount, base in self._mounts:
            inside = path == mount.destination or path.startswith(mount.destination.rstrip("/") + "/")
            if inside and len(mount.destination) >= len(best[0].destination):
                best = mount, base
        return best


@contextmanager
def _open_view(root: str, mounts: Sequence[_Mount]) -> Iterator[_View]:
    """A view of these files until the block ends. The sources are the host's paths, so their links are followed."""
    with ExitStack() as opened:

        def open_source(source: str | None) -> int | None:
            if source is None:
                return None
            try:
                descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                return None
            opened.callback(os.close, descriptor)
            return descriptor

        yield _View([(each, open_source(each.source)) for each in (_Mount("/", root), *mounts)])


def _status(found: _Found) -> os.stat_result:
    descriptor = found.open(os.O_PATH | os.O_NOFOLLOW)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _read_link(found: _Found) -> str | None:
    """Where a symbolic link leads; None for anything else. Raises: OSError where nothing is there."""
    descriptor = found.open(os.O_PATH | os.O_NOFOLLOW)
    try:
        is_link = stat.S_ISLNK(os.fstat(descriptor).st_mode)
        return os.readlink("", dir_fd=descriptor) if is_link else None
    finally:
        os.close(descriptor)


def _is_bind(mount: Spec) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def _shown(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _mount_point(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
