"""Row S02: only ``host/directory_tree.py`` resolves paths below a directory that a plugin can write."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "src" / "moorage"

# Functions of the standard library that resolve a path, or that follow a link in it.
OF_OS = {
    "access", "chmod", "chown", "getxattr", "lchown", "link", "listdir", "listxattr", "lstat", "makedirs", "mkdir",
    "mkfifo", "mknod", "remove", "removedirs", "rename", "replace", "rmdir", "scandir", "setxattr", "stat", "symlink",
    "truncate", "unlink", "utime", "walk",
}  # fmt: skip
OF_OS_PATH = {
    "exists",
    "getmtime",
    "getsize",
    "isdir",
    "isfile",
    "islink",
    "ismount",
    "lexists",
    "realpath",
    "samefile",
}
OF_PATH = {
    "chmod", "exists", "glob", "hardlink_to", "is_dir", "is_file", "is_fifo", "is_mount", "is_socket", "is_symlink",
    "iterdir", "lchmod", "lstat", "mkdir", "open", "owner", "read_bytes", "read_text", "readlink", "rename", "resolve",
    "rglob", "rmdir", "samefile", "symlink_to", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
OF_SHUTIL = {"copy", "copyfile", "copytree", "move", "rmtree"}

# What handles the root, the propagated directory or the socket of a plugin, and what each may do all the same.
MODULES: dict[str, dict[str, str]] = {
    "runs/http_call.py": {"open": "PluginSocket.open"},
    "engine/transfers.py": {
        "is_dir": "the engine's own directory of logs",
        "iterdir": "the engine's own directory of logs",
    },
    "runs/container_files.py": {
        "open": "methods of its own; the sources of binds are the host's paths",
        **dict.fromkeys(
            ("chown", "listdir", "mkdir", "stat", "symlink", "unlink"),
            "of a name in a directory that is open, without following links",
        ),
    },
    "runs/entrypoint.py": {"open": "ContainerFile.open", "ismount": "text"},
    "runs/plan.py": {"exists": "mount sources are the host's paths, checked in a thread that may be abandoned"},
    "runs/preparation.py": {
        "open": "Directory.open of directories that only root controls",
        "rename": "of a name in the plugin's run-time directory, which only root controls, by its descriptor",
    },
    "runs/removal.py": {
        "listdir": "groups of this machine, which only root creates there",
        "is_dir": "the engine's own run-time directory",
        "iterdir": "the engine's own run-time directory",
    },
    "packages/usage.py": {},
    "runs/readiness.py": {},
    "engine/run/exec_processes.py": {
        "exists": "the engine's own run-time directory",
        "glob": "the engine's own run-time directory",
    },
    "host/sockets.py": {
        "lstat": "is_socket, for the engine's own sockets",
        "open": "the directory above, which only root controls; its own method",
        "scandir": "of a descriptor",
        "stat": "of a name in a directory that is open, without following links",
    },
}


def calls_of(path: Path) -> set[str]:
    """The names of all functions in a file that resolve paths: as os.stat, os.path.exists, or methods of a Path."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
            found.add("open")
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        # with a descriptor instead of the path they resolve nothing: os.fstat, os.stat(..., dir_fd=...)
        names = {"os": OF_OS, "os.path": OF_OS_PATH, "shutil": OF_SHUTIL}.get(
            owner, OF_PATH if owner != "os" else set()
        )
        if node.attr in names:
            found.add(node.attr)
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_s02_no_module_that_handles_what_plugins_write_resolves_paths_itself(module: str) -> None:
    assert calls_of(ROOT / module) <= set(MODULES[module]), "use host/directory_tree.py"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_s02_every_exception_is_still_needed_and_has_a_reason(module: str) -> None:
    assert set(MODULES[module]) <= calls_of(ROOT / module) | {"ismount"}
    assert all(MODULES[module].values())


def test_s02_the_search_finds_each_way_of_resolving_a_path(tmp_path: Path) -> None:
    program = tmp_path / "module.py"
    program.write_text(
        "import os, shutil\nos.chown(p, 1, 1)\nos.path.realpath(p)\nPath(p).exists()\nshutil.rmtree(p)\nopen(p)\n"
    )
    assert calls_of(program) == {"chown", "realpath", "exists", "rmtree", "open"}


def test_s02_owners_are_changed_nowhere_by_a_path_that_may_be_a_link() -> None:
    """Where an owner is changed by path, it is of a file in a directory that only root can write to."""
    allowed = {
        "containerd/stdio.py",
        "host/mounts.py",
        "api/server.py",
        "host/process_environment.py",
    }
    allowed |= {"proxy/listeners.py"}  # sockets in directories that only root can write to
    allowed |= {"engine/store.py"}  # directories of plugins, in one that only root can write to
    allowed |= {"runs/container_files.py"}  # of a name in a directory that is open, without following links
    allowed |= {"host/id_mapping.py"}  # by descriptor, what an unmounted root has: no other user can write there
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if {"chown", "lchown"}
        & {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    }
    assert found <= allowed
