"""Only ``host/`` reads /proc, uses /sys/fs/cgroup and calls the C library; each of the first two in one module."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "moorage"
MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if "_proto" not in path.parts]

# Where a text names one of these directories without using it on this host.
OF_CONTAINERS = {
    "containerd/images/config.py": "mounts, masked and read-only paths of a container",
    "cli/migration/root_changes.py": "directories of a plugin's root file system",
    "plugins/_base.py": "mounts, masked and read-only paths of a container",
    "plugins/apparmor.py": "paths of a container that profiles deny",
    "plugins/model.py": "destinations that a plugin may not mount over",
    "plugins/spec.py": "mounts of a container",
}


def uses(text: str) -> set[str]:
    """What a module uses of the kernel: "proc", "cgroup", "ctypes". Docstrings are not counted."""
    found = set()
    tree = ast.parse(text)
    documents = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {"ctypes" for alias in node.names if alias.name.split(".")[0] == "ctypes"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ctypes":
            found.add("ctypes")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            found |= {"cgroup"} if "/sys/fs/cgroup" in node.value else set()
            found |= {"proc"} if node.value.startswith(("/proc", "proc/")) else set()
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_x01_only_the_host_room_uses_the_kernel_directly(path: Path) -> None:
    name = str(path.relative_to(SOURCE))
    allowed = {"host/proc.py": {"proc"}, "host/cgroups.py": {"cgroup"}}.get(name, set())
    if name.startswith("host/"):
        allowed = allowed | {"ctypes"}
    if name == "kit/mounts.py":
        allowed = {"proc", "ctypes"}  # of a plugin, which carries the kit and nothing else
    if name in OF_CONTAINERS:
        allowed = {"proc", "cgroup"}
    assert uses(path.read_text()) <= allowed, "use host/proc.py, host/cgroups.py or another module of host/"


def test_x01_every_exception_is_still_needed() -> None:
    assert all(uses((SOURCE / name).read_text()) for name in OF_CONTAINERS)


def test_x01_the_search_finds_each_way() -> None:
    assert uses('import ctypes.util\nopen(f"/proc/{pid}/stat")') == {"ctypes", "proc"}
    assert uses('from ctypes import CDLL\nPath("/sys/fs/cgroup")') == {"ctypes", "cgroup"}
    assert uses('(root / "proc/self/status").read_text()\nPath("/proc", "1")') == {"proc"}
    assert uses('"""Of /proc."""\ndef f():\n    """As /proc/PID."""') == set()
