"""Configs of images: how their author wants a container to run, and an OCI runtime spec that does it.

Source: the OCI image specification, config.md; the defaults of a container are those of dockerd and ctr.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from msgspec import Struct, field

from moorage import errors
from moorage.oci.manifest import decode

__all__ = ("ImageConfig", "container_spec", "parse_image_config")

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = (
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
"""Those of a container of dockerd."""
_MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
    "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_MOUNTS: tuple[dict[str, Any], ...] = (
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777"],
    },
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
)


class ImageConfig(Struct, frozen=True):
    """What the author of an image states about its containers.

    ``entrypoint`` and ``command`` are the words to run, ``directory`` is where; ``labels`` are the image's, and
    ``stop_signal`` ends it. ``diff_ids`` are the digests of its layers, unpacked.
    """

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    """NAME=VALUE."""
    directory: str = ""
    user: str = ""
    """UID[:GID], or names of the image's files, which are not resolved here."""
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    diff_ids: tuple[str, ...] = ()


class _Config(Struct):
    Entrypoint: list[str] | None = None
    Cmd: list[str] | None = None
    Env: list[str] | None = None
    WorkingDir: str | None = None
    User: str | None = None
    Labels: dict[str, str] | None = None
    StopSignal: str | None = None


class _Unpacked(Struct):
    diff_ids: list[str]


class _Document(Struct):
    rootfs: _Unpacked
    config: _Config | None = None


def parse_image_config(data: bytes, where: str) -> ImageConfig:
    """The config of an image; ``where`` begins errors. Raises: Invalid."""
    document = decode(data, _Document, where)
    found = document.config or _Config()
    return ImageConfig(
        entrypoint=tuple(found.Entrypoint or ()),
        command=tuple(found.Cmd or ()),
        environment=tuple(found.Env or ()),
        directory=found.WorkingDir or "",
        user=found.User or "",
        labels=found.Labels or {},
        stop_signal=found.StopSignal or "",
        diff_ids=tuple(document.rootfs.diff_ids),
    )


def container_spec(
    config: ImageConfig,
    arguments: Sequence[str] = (),
    *,
    environment: Sequence[str] = (),
    terminal: bool = False,
    host_network: bool = False,
    cgroup: str = "",
    mounts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """An OCI runtime spec for a container of an image whose root is mounted from a snapshot, with dockerd's defaults.

    ``arguments`` replace the command of the image, after its entrypoint; ``environment`` (NAME=VALUE) overrides its
    variables; ``mounts`` are added. Without ``host_network`` there is a network namespace with nothing in it. Change
    the result for everything else: it is plain data.

    Raises:
        errors.Invalid: there is nothing to run, or the image names its user by a name
    """
    words = [*config.entrypoint, *(arguments or config.command)]
    if not words:
        raise errors.Invalid("cannot make a spec: neither the image nor the caller names a command")
    namespaces = ["pid", "ipc", "uts", "mount", *([] if host_network else ["network"])]
    variables = dict(each.partition("=")[::2] for each in (_PATH, *config.environment, *environment))
    capabilities = {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": _user(config.user),
            "args": words,
            "env": [f"{name}={value}" for name, value in variables.items()],
            "cwd": str(PurePosixPath("/", config.directory)),
            "capabilities": capabilities,
            "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": "rootfs"},
        "hostname": "container",
        "mounts": [*map(dict, _MOUNTS), *map(dict, mounts)],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
            **({"cgroupsPath": cgroup} if cgroup else {}),
        },
    }


def _user(text: str) -> dict[str, int]:
    uid, _, gid = text.partition(":")
    if not all(each.isdecimal() for each in (uid or "0", gid or "0")):
        raise errors.Invalid(f"cannot make a spec: the image names its user {text!r}, and only ids are understood")
    return {"uid": int(uid or 0), "gid": int(gid or 0)}
