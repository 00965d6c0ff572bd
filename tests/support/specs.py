"""Specs of small containers that need no download: the machine's own /usr, read-only, with a shell in it.

What the process does is said twice, once for runc (a shell's text) and once for the fake (an annotation), so that one
test can run on both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINKS = ("bin", "sbin", "lib", "lib64")
CODE = "moorage.test/code"
OUT = "moorage.test/out"
ERR = "moorage.test/err"

FOREVER = "exec sleep 1000000"


def make_rootfs(directory: Path) -> Path:
    """A root file system of links and mount points, for ``shell_spec``."""
    for name in ("usr", "proc", "dev", "tmp", "share"):
        (directory / name).mkdir(parents=True)
    for name in LINKS:
        if Path("/usr", name).exists():
            (directory / name).symlink_to(f"usr/{name}")
    return directory


def command_spec(
    rootfs: Path | str,
    arguments: Sequence[str],
    *,
    cgroup: str,
    mounts: Sequence[dict[str, Any]] = (),
    user: tuple[int, int] = (0, 0),
    linux: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """An OCI spec that runs this command."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user[0], "gid": user[1]},
            "args": list(arguments),
            "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "mounts": [
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"]},
            *mounts,
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            **(linux or {}),
        },
    }


def script(*, out: bytes = b"", err: bytes = b"", code: int | None = None) -> tuple[str, dict[str, str]]:
    """What a process writes and how it ends (None: it lives until killed), as shell text and as annotations."""
    text = f"printf %b '{_octal(out)}'; printf %b '{_octal(err)}' >&2; "
    annotations = {OUT: out.hex(), ERR: err.hex()}
    if code is None:
        return text + FOREVER, annotations
    return f"{text}exit {code}", {**annotations, CODE: str(code)}


def _octal(data: bytes) -> str:
    return "".join(f"\\0{byte:03o}" for byte in data)
