"""Control groups that a runtime made for a container and was killed before it could use or remove them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moorage.containerd.types import Spec

_ROOT = Path("/sys/fs/cgroup")


def remove_left_cgroups(spec: Spec, root: Path = _ROOT) -> None:
    """Remove the control group that the spec names, in every hierarchy where it is empty.

    One with a process or a group in it stays: the kernel refuses. Names in systemd's form are left to systemd.
    """
    linux = spec.get("linux")
    path: Any = linux.get("cgroupsPath") if isinstance(linux, Mapping) else None
    if not isinstance(path, str) or not path.startswith("/") or ":" in path or ".." in Path(path).parts:
        return
    name = path.strip("/")
    if not name:
        return
    for directory in (root / name, *root.glob(f"*/{name}")):
        try:
            os.rmdir(directory)
        except OSError:
            pass  # not there, or in use
