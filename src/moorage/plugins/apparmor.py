"""The AppArmor profiles of plugins, as text for ``apparmor_parser``, and which of them a plugin gets. Pure.

There are three, because AppArmor must not refuse what a plugin was granted: one for most plugins, one for those that
mount (SYS_ADMIN), one for those that were given the host's processes or its /proc and /sys. Like the profiles that
containers get elsewhere they allow everything but what opens the host: what a plugin's files are, a profile that is the
same for all cannot know.

Source: apparmor.d(5) of AppArmor 3.0; docs/adr/0044.
"""

import posixpath
from collections.abc import Iterable

from moorage.plugins.confinement import requested_capabilities
from moorage.plugins.model import Config, MountEntry
from moorage.plugins.settings import Settings

__all__ = ("APPARMOR_PROFILES", "PROFILES_FILE", "profile_for", "profiles_text")

_DEFAULT, _MOUNT, _HOST = "moorage-default", "moorage-default-mount", "moorage-default-host"

APPARMOR_PROFILES = (_DEFAULT, _MOUNT, _HOST)
"""The names of all of them, the narrowest first."""

PROFILES_FILE = "moorage"
"""Name of their file where a package installs it (/etc/apparmor.d), and of that for local rules and for disabling."""

_HEAD = """\
# AppArmor profiles of the plugins that Moorage runs. This file is replaced by upgrades: rules of your own belong into
# local/moorage, which is included into each profile; a plugin gets another profile with moorage policy --apparmor.

# The rules that Debian 12 and 13 both know, so that a profile means the same on both.
abi <abi/3.0>,
"""

_TITLES = {
    _DEFAULT: "Of most plugins.",
    _MOUNT: "Of plugins that were granted the capability SYS_ADMIN: they mount, as volume plugins do.",
    _HOST: "Of plugins that were granted the host's processes (pidHost), or a mount on /proc or /sys.",
}

_ALL = """\
  network,
  unix,
  dbus,
  capability,
  file,

  # The sender's own profile, its uid and the pid namespace decide: runc, crun and shims have profiles on some hosts.
  signal (receive),
  ptrace (readby, tracedby),
"""

# A runtime that is confined itself may stack the profile on its own, so the peer is either of the two forms.
_AMONG_ITSELF = """\
  signal (send) peer={,**//&}NAME{,//&**},
  ptrace (read, trace) peer={,**//&}NAME{,//&**},
"""

_MOUNTS = """\
  mount,
  umount,
  pivot_root,
"""

_TO_ALL = """\
  signal (send),
  ptrace (read, trace),
"""

# Denied with a record in the kernel's log, which a plain "deny" would suppress.
_KERNEL = """\
  # Through these the kernel of the host is changed: of /proc the plugin writes to what belongs to processes.
  audit deny /proc/[^0-9]* w,
  audit deny /proc/[^0-9s]*/** w,
  audit deny /proc/s[^y]*/** w,
  audit deny /proc/sy[^s]*/** w,
  audit deny /proc/sys?*/** w,
{sysctl}
  audit deny /proc/{{kcore,sysrq-trigger}} rwklx,
  audit deny /sys/[^f]*/** wklx,
  audit deny /sys/f[^s]*/** wklx,
  audit deny /sys/fs/[^c]*/** wklx,
  audit deny /sys/fs/c[^g]*/** wklx,
  audit deny /sys/fs/cg[^r]*/** wklx,
  audit deny /sys/firmware/** rwklx,
  audit deny /sys/devices/virtual/powercap/** rwklx,
"""

_NO_SYSCTL = "  audit deny /proc/sys/** w,"
# Those of the network belong to its namespace, and network plugins set them after they have made them writable.
_NETWORK_SYSCTL = "  audit deny /proc/sys/[^n]** w,\n  audit deny /proc/sys/n[^e]** w,"

_TAIL = """\
  # The policy of AppArmor itself.
  audit deny /sys/kernel/security/** rwklx,

  include if exists <local/moorage>
"""

_BODIES = {
    _DEFAULT: _ALL + _AMONG_ITSELF + "\n" + _KERNEL.format(sysctl=_NO_SYSCTL) + _TAIL,
    _MOUNT: _ALL + _AMONG_ITSELF + _MOUNTS + "\n" + _KERNEL.format(sysctl=_NETWORK_SYSCTL) + _TAIL,
    _HOST: _ALL + _TO_ALL + _MOUNTS + "\n" + _TAIL,
}


def profile_for(config: Config, settings: Settings) -> str:
    """The name of the narrowest profile that allows what a plugin was granted."""
    if config.pid_host or _mounts_on_kernel_files(settings.mounts):
        return _HOST
    return _MOUNT if "CAP_SYS_ADMIN" in requested_capabilities(config) else _DEFAULT


def profiles_text() -> str:
    """All profiles, as one file."""
    profiles = (
        f"\n# {_TITLES[name]}\nprofile {name} flags=(attach_disconnected,mediate_deleted) {{\n"
        f"{_BODIES[name].replace('NAME', name)}}}\n"
        for name in APPARMOR_PROFILES
    )
    return _HEAD + "".join(profiles)


def _mounts_on_kernel_files(mounts: Iterable[MountEntry]) -> bool:
    """Whether something writable of the host is mounted where the narrower profiles deny to write."""
    points = [
        posixpath.normpath(f"/{each.destination.lstrip('/')}")
        for each in mounts
        if each.source and not each.is_read_only
    ]
    return any(
        _is_within(point, kernel_files) and not _is_within(point, "/sys/fs/cgroup")
        for point in points
        for kernel_files in ("/proc", "/sys")
    )


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")
