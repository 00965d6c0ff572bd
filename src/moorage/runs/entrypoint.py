"""Why an entrypoint did not run, as text. Called after a failure only, so that a wrong guess refuses nothing.

Little of the plugin's files is read, and a caller waits for a second at most. Everything here blocks: call it in a
worker thread.
"""

import os
import posixpath
import stat

from moorage import errors
from moorage._lib.time_limit import call_bounded
from moorage.containerd.types import Spec
from moorage.host.executables import (
    HEAD_BYTES,
    has_elf_magic,
    is_machine_supported,
    own_program,
    read_elf,
    read_interpreter,
)
from moorage.plugins.confinement import without_init
from moorage.runs.container_files import ContainerFiles, NotVisible, open_container_files
from moorage.timeouts import DEFAULT

__all__ = ("explain_start_failure",)

_WITHIN = DEFAULT.entrypoint_answer  # seconds for all of it


def explain_start_failure(spec: Spec, root: str, *, owner: str = "") -> str:
    """Why the first of ``spec["process"]["args"]`` cannot run in ``root``; empty where it seems fine.

    Also empty where that cannot be found out in time. ``owner`` is the plugin's id.
    """
    try:
        return call_bounded(lambda: _explain(spec, root), _WITHIN, "explain why the plugin did not run", owner=owner)
    except (NotVisible, OSError, errors.Unavailable):  # without the file there is no explanation
        return ""


def _explain(spec: Spec, root: str) -> str:
    process = spec["process"]
    command, variables = without_init(process["args"])[0], dict(entry.split("=", 1) for entry in process.get("env", ()))
    with open_container_files(spec, root) as files:
        if "/" in command:
            return _explain_file(files, posixpath.join(process.get("cwd") or "/", command))
        directories = variables.get("PATH", "").split(":")
        for directory in directories:
            path = posixpath.join("/", directory, command)
            found = files.find(path)
            if found is not None and stat.S_ISREG(found.status().st_mode):
                return _explain_file(files, path)
        return f"there is no {command} in the plugin's PATH ({':'.join(directories)})"


def _explain_file(files: ContainerFiles, path: str) -> str:
    found = files.find(path)
    if found is None:
        return f"there is no {path} in the plugin's root file system"
    mode = found.status().st_mode
    if stat.S_ISDIR(mode):
        return f"{path} is a directory, not a program"
    if not stat.S_ISREG(mode):
        return f"{path} is not a file that can be run"
    if not mode & 0o111:
        return f"{path} is not executable; make it so with chmod +x"
    descriptor = found.open(os.O_RDONLY | os.O_NONBLOCK)
    try:
        if os.fstatvfs(descriptor).f_flag & os.ST_NOEXEC:
            return f"{path} is on a file system that is mounted noexec (at {_mount_point(files.host_path(path))})"
        return _explain_contents(files, path, os.pread(descriptor, HEAD_BYTES, 0))
    finally:
        os.close(descriptor)


def _explain_contents(files: ContainerFiles, path: str, head: bytes) -> str:
    interpreter = read_interpreter(head)
    if interpreter is not None:
        if not interpreter or files.find(interpreter) is None:
            return f"{path} is a script for {_printable(interpreter) or 'nothing'}, which is not in the plugin"
        return ""
    if not has_elf_magic(head):
        return f"{path} is neither a program of this machine nor a script that starts with #!"
    return _explain_program(files, path, head)


def _explain_program(files: ContainerFiles, path: str, head: bytes) -> str:
    try:
        program = read_elf(head)
    except ValueError:
        return f"{path} is damaged: its program headers cannot be read"
    own = own_program()
    if not is_machine_supported(program, own):
        return f"{path} is a program for another CPU ({program.architecture}; this machine is {own.architecture})"
    if program.loader and files.find(program.loader) is None:
        return f"{path} needs the loader {_printable(program.loader)}, which is not in the plugin's root file system"
    return ""


def _printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _mount_point(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
