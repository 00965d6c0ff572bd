"""The container that every plugin starts from: what Docker gives its plugins, as plain values.

Source: moby daemon/pkg/oci/defaults.go@b985e21, checked against the spec that dockerd 20.10 hands to runc. One path is
masked beyond 20.10 (``/sys/devices/virtual/powercap``, as in later ones).
"""

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

__all__ = (
    "CAPABILITIES",
    "CGROUP_MOUNT",
    "DEFAULT_CAPABILITIES",
    "DEFAULT_PATH",
    "DEVICE_RULES",
    "MASKED_PATHS",
    "MOUNTS",
    "READONLY_PATHS",
    "OciMount",
    "with_host_cgroups",
)


class OciMount(Struct, frozen=True):
    """One mount of the runtime spec."""

    destination: str
    type: str
    source: str
    options: tuple[str, ...] = ()

    @property
    def is_bind(self) -> bool:
        """Whether runc binds it: the options alone decide."""
        return "bind" in self.options or "rbind" in self.options

    def to_json(self) -> dict[str, object]:
        """As the runtime spec writes it."""
        made: dict[str, object] = {"destination": self.destination, "source": self.source}
        if self.type:
            made["type"] = self.type
        if self.options:
            made["options"] = list(self.options)
        return made


DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

CAPABILITIES = frozenset(
    (
        *DEFAULT_CAPABILITIES,
        "CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
        "CAP_DAC_READ_SEARCH", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN",
        "CAP_MAC_OVERRIDE", "CAP_NET_ADMIN", "CAP_NET_BROADCAST", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_ADMIN",
        "CAP_SYS_BOOT", "CAP_SYS_MODULE", "CAP_SYS_NICE", "CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO",
        "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
    )
)  # fmt: skip
"""All that Linux has up to 6.x (linux/capability.h)."""

CGROUP_MOUNT = "/sys/fs/cgroup"
"""Where control groups are mounted, on the host and in every plugin."""

MOUNTS = (
    OciMount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    OciMount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    OciMount(
        "/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    ),
    OciMount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    OciMount(CGROUP_MOUNT, "cgroup", "cgroup", ("ro", "nosuid", "noexec", "nodev")),
    OciMount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    OciMount("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777")),
)

DEVICE_RULES: tuple[tuple[bool, str, int | None, int | None], ...] = (
    (False, "", None, None),
    (True, "c", 1, 5),
    (True, "c", 1, 3),
    (True, "c", 1, 9),
    (True, "c", 1, 8),
    (True, "c", 5, 0),
    (True, "c", 5, 1),
    (False, "c", 10, 229),
)
"""Allowed or not, type, major, minor: zero, null, urandom, random, tty, console; and not fuse."""

MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def with_host_cgroups(mounts: Iterable[OciMount]) -> list[OciMount]:
    """These mounts with every new mount of control groups version 2 replaced by a bind of the host's.

    The hierarchy has one set of options, and one who mounts it from the host's namespace sets them for the host, too.
    Source: docs/adr/0041-a-plugin-binds-the-hosts-control-groups.md.
    """
    return [
        replace(each, type="bind", source=CGROUP_MOUNT, options=("rbind", *each.options))
        if each.type in ("cgroup", "cgroup2") and not each.is_bind
        else each
        for each in mounts
    ]
