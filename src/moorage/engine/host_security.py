"""What confines plugins on this host: its seccomp profile, AppArmor, SELinux, an init program. Everything here blocks.

All paths hang below one directory, "/" but in tests.
"""

import logging
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Collection
from functools import cache
from pathlib import Path

from moorage import errors
from moorage.engine.devices import is_in_user_namespace
from moorage.plugins.apparmor import PROFILES, profile_for, profile_text
from moorage.plugins.confinement import RLIMITS, HostFeatures
from moorage.plugins.seccomp import Profile, parse_profile

__all__ = ("HostSecurity", "find_apparmor_parser")

log = logging.getLogger(__name__)

SECCOMP_PROFILES = ("etc/containers/seccomp.json", "usr/share/containers/seccomp.json")
"""The first that exists is used, as podman does."""

INIT_PROGRAMS = ("usr/bin/tini-static", "usr/libexec/podman/catatonit", "usr/bin/catatonit")
"""Static ones only: a plugin's root has no library for another."""

_CAP_SYS_RESOURCE = 24  # linux/capability.h
_PROFILE_LIMIT = 1 << 20  # bytes
_LOAD_SECONDS = 20.0
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class HostSecurity:
    """The security modules of one host."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def features(self, capabilities: Collection[str] = (), *, id_base: int = 0) -> HostFeatures:
        """What a plugin with these requested capabilities can be confined by now; loads its AppArmor profile."""
        return HostFeatures(
            architecture=_MACHINES.get(platform.machine(), platform.machine()),
            kernel=self.kernel,
            has_seccomp=self.has_seccomp(),
            seccomp_profile=self.seccomp_profile(),
            apparmor_profile=self.ensure_apparmor_profile(profile_for(capabilities)),
            init_program=self.init_program(),
            open_files=self.open_files(),
            rlimit_bounds=self.rlimit_bounds(),
            id_base=id_base,
            in_user_namespace=is_in_user_namespace(),
        )

    @property
    def kernel(self) -> tuple[int, int]:
        """Version of the running kernel: major, minor."""
        return _kernel(platform.release())

    def has_seccomp(self) -> bool:
        """Whether the kernel filters system calls."""
        return (self._root / "proc/sys/kernel/seccomp/actions_avail").exists()

    def find_seccomp_profile(self) -> Path | None:
        """The file of the host's profile."""
        return next((path for each in SECCOMP_PROFILES if (path := self._root / each).is_file()), None)

    def read_seccomp_profile(self) -> Profile | None:
        """The host's profile, None where it has none. Raises: Invalid for a file that cannot be used."""
        path = self.find_seccomp_profile()
        if path is None:
            return None
        try:
            status = path.stat()
            return _parsed(str(path), status.st_mtime_ns, status.st_size)
        except OSError as error:
            raise errors.Invalid(f"cannot read {path}: {error.strerror}") from error

    def seccomp_profile(self) -> Profile | None:
        """The host's profile, None where it has none that can be used; that is logged, and our own rules hold."""
        try:
            return self.read_seccomp_profile()
        except errors.Invalid as error:
            log.warning("%s; the built-in rules are used", error)
            return None

    def has_apparmor(self) -> bool:
        """Whether AppArmor is active."""
        try:
            return (self._root / "sys/module/apparmor/parameters/enabled").read_text().strip() == "Y"
        except OSError:
            return False

    def has_selinux(self) -> bool:
        """Whether SELinux is active."""
        return (self._root / "sys/fs/selinux/enforce").exists()

    def is_selinux_enforcing(self) -> bool:
        """Whether SELinux refuses, and not only reports."""
        try:
            return (self._root / "sys/fs/selinux/enforce").read_text().strip() == "1"
        except OSError:
            return False

    def loaded_apparmor_profiles(self) -> frozenset[str]:
        """Names of the profiles that the kernel has."""
        try:
            lines = (self._root / "sys/kernel/security/apparmor/profiles").read_text().splitlines()
        except OSError:
            return frozenset()
        return frozenset(line.rpartition(" (")[0] for line in lines)

    def ensure_apparmor_profile(self, name: str) -> str:
        """The name, once the kernel has the profile; empty where AppArmor is inactive or it cannot be loaded."""
        if not self.has_apparmor():
            return ""
        if name in self.loaded_apparmor_profiles():
            return name
        try:
            load_apparmor_profile(name)
        except errors.MoorageError as error:
            log.warning("%s; plugins run without an AppArmor profile", error)
            return ""
        return name

    def init_program(self) -> str:
        """Path of a static init program; empty where there is none."""
        paths = (self._root / each for each in INIT_PROGRAMS)
        return next((str(path) for path in paths if os.access(path, os.X_OK)), "")

    def open_files(self) -> int:
        """The kernel's bound for the limit of open files."""
        try:
            return int((self._root / "proc/sys/fs/nr_open").read_text())
        except (OSError, ValueError):
            return 1 << 20

    def rlimit_bounds(self) -> dict[str, int]:
        """This process's hard limits, where it may not raise them (and so what it starts may not); empty else."""
        status = (self._root / "proc/self/status").read_text()
        effective = int(re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)[1], 16)  # type: ignore[index]
        if effective >> _CAP_SYS_RESOURCE & 1:
            return {}
        numbers = {name: getattr(resource, f"RLIMIT_{name.upper()}", None) for name in RLIMITS}
        return {name: resource.getrlimit(number)[1] for name, number in numbers.items() if number is not None}


def find_apparmor_parser() -> str | None:
    """Path of the program that loads profiles."""
    return shutil.which("apparmor_parser", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def load_apparmor_profile(name: str) -> None:
    """Load one of our profiles into the kernel. Raises: Unsupported without the parser; MoorageError with its words."""
    assert name in PROFILES
    parser = find_apparmor_parser()
    if parser is None:
        raise errors.Unsupported(
            f"cannot load AppArmor profile {name}: there is no apparmor_parser on this host; "
            "install it (Debian: apt install apparmor)"
        )
    command = [parser, "--replace", "--skip-cache", "--quiet"]
    try:
        done = subprocess.run(
            command, input=profile_text(name).encode(), capture_output=True, timeout=_LOAD_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.MoorageError(f"cannot load AppArmor profile {name}: {error}") from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise errors.MoorageError(f"cannot load AppArmor profile {name}: {words}")


@cache
def _parsed(path: str, changed_at: int, size: int) -> Profile:
    if size > _PROFILE_LIMIT:
        raise errors.Invalid(f"cannot read {path}: it is larger than {_PROFILE_LIMIT} bytes")
    try:
        return parse_profile(Path(path).read_bytes())
    except errors.Invalid as error:
        raise errors.Invalid(f"{error} (in {path})") from error


def _kernel(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)
