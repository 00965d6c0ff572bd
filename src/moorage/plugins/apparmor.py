"""The AppArmor profiles of plugins, as text for ``apparmor_parser``. Pure.

Like the profile that containers get elsewhere: everything is allowed but what opens the host. A plugin that was granted
SYS_ADMIN mounts, and volume plugins do little else, so it gets a profile of its own that does not deny that.
"""

from collections.abc import Collection

__all__ = ("PROFILES", "profile_for", "profile_text")

_PLAIN, _MOUNTING = "moorage-default", "moorage-default-mount"

PROFILES = (_PLAIN, _MOUNTING)
"""The names of all of them."""

# Written to through /proc and /sys these reach the kernel of the host (proc(5), sysfs(5)).
_DENIED_FILES = (
    "@{PROC}/* w,",
    "@{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,",
    "@{PROC}/sys/[^k]** w,",
    "@{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,",
    "@{PROC}/sysrq-trigger rwklx,",
    "@{PROC}/kcore rwklx,",
    "/sys/[^f]*/** wklx,",
    "/sys/f[^s]*/** wklx,",
    "/sys/fs/[^c]*/** wklx,",
    "/sys/fs/c[^g]*/** wklx,",
    "/sys/fs/cg[^r]*/** wklx,",
    "/sys/firmware/** rwklx,",
    "/sys/devices/virtual/powercap/** rwklx,",
    "/sys/kernel/security/** rwklx,",
)


def profile_for(capabilities: Collection[str]) -> str:
    """Which of the profiles a plugin with these capabilities gets."""
    return _MOUNTING if "CAP_SYS_ADMIN" in capabilities else _PLAIN


def profile_text(name: str) -> str:
    """A profile for ``apparmor_parser``."""
    lines = [
        "#include <tunables/global>",
        "",
        f"profile {name} flags=(attach_disconnected,mediate_deleted) {{",
        "  #include <abstractions/base>",
        "",
        "  network,",
        "  capability,",
        "  file,",
        "  umount,",
        "  signal (receive) peer=unconfined,",
        f"  signal (send,receive) peer={name},",
        f"  ptrace (trace,read,tracedby,readby) peer={name},",
        *(f"  deny {each}" for each in _DENIED_FILES),
        "  mount," if name == _MOUNTING else "  deny mount,",
        *(("  pivot_root,",) if name == _MOUNTING else ()),
        "}",
        "",
    ]
    return "\n".join(lines)
