"""What confines plugins on this host: its seccomp profile, AppArmor, SELinux, an init program. Everything here blocks.

All paths are below one directory: "/", or another one in tests.
"""

import logging
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from moorage import errors
from moorage.host.proc import effective_capabilities, is_in_user_namespace, kernel_parameter
from moorage.oci.platforms import architecture_of_machine
from moorage.plugins.apparmor import APPARMOR_PROFILES, PROFILES_FILE, profiles_text
from moorage.plugins.confinement import RLIMITS, HostFeatures
from moorage.plugins.seccomp import Profile, parse_profile
from moorage.timeouts import DEFAULT

__all__ = ("HostSecurity", "find_apparmor_parser")

log = logging.getLogger(__name__)

SECCOMP_PROFILES = ("etc/containers/seccomp.json", "usr/share/containers/seccomp.json")
"""The first that exists is used, as podman does."""

INIT_PROGRAMS = ("usr/bin/tini-static", "usr/libexec/podman/catatonit", "usr/bin/catatonit")
"""Static ones only: a plugin's root has no library for another."""

_CAP_SYS_RESOURCE = 24  # linux/capability.h
_PROFILE_LIMIT = 1 << 20  # bytes
_LOAD_SECONDS = DEFAULT.apparmor_load


class HostSecurity:
    """The security modules of one host."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def features(self, apparmor_profile: str = APPARMOR_PROFILES[0], *, id_base: int = 0) -> HostFeatures:
        """What confines a plugin here; loads the profiles of AppArmor, of which the plugin gets the named one."""
        return HostFeatures(
            architecture=architecture_of_machine(platform.machine()),
            kernel=self.kernel,
            has_seccomp=self.has_seccomp(),
            seccomp_profile=self.seccomp_profile(),
            has_apparmor=self.has_apparmor(),
            apparmor_profile=apparmor_profile if self.ensure_apparmor_profiles() else "",
            apparmor_profiles=frozenset(self.loaded_apparmor_profiles()),
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
        return kernel_parameter("kernel/seccomp/actions_avail", self._root) is not None

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
        """The host's profile, None where none can be used, which is logged; the built-in rules apply then."""
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

    def loaded_apparmor_profiles(self) -> Mapping[str, str]:
        """The mode (enforce, complain, ...) of each profile that the kernel has, by name; empty for all but root."""
        try:
            lines = (self._root / "sys/kernel/security/apparmor/profiles").read_text().splitlines()
        except OSError:
            return {}
        return {name: mode.rstrip(")") for name, _, mode in (line.rpartition(" (") for line in lines)}

    def find_apparmor_file(self) -> Path | None:
        """The file with the profiles that a package has installed; None where this program's own text is loaded."""
        path = self._root / "etc/apparmor.d" / PROFILES_FILE
        return path if path.is_file() else None

    def are_apparmor_profiles_disabled(self) -> bool:
        """Whether an administrator has switched them off for this host, as aa-disable does it."""
        return os.path.lexists(self._root / "etc/apparmor.d/disable" / PROFILES_FILE)

    def ensure_apparmor_profiles(self) -> bool:
        """Whether the kernel has the profiles; loads them where it does not, unless they are disabled.

        A failure is logged: plugins run without a profile then. For a user who is not root, and so can neither see nor
        load them nor run a plugin, the answer is as root will find it: ``run --print-spec`` shows that spec.
        """
        if not self.has_apparmor():
            return False
        if os.geteuid() != 0:
            return not self.are_apparmor_profiles_disabled()
        if set(APPARMOR_PROFILES) <= self.loaded_apparmor_profiles().keys():
            return True
        if self.are_apparmor_profiles_disabled() or is_in_user_namespace():
            return False
        return self._load_apparmor_profiles()

    def refresh_apparmor_profiles(self) -> None:
        """Load the profiles of this version, as an engine does when it starts: the kernel may have those of an earlier.

        Nothing is done where a package has installed them, which loads its own.
        """
        if self.has_apparmor() and not (
            self.find_apparmor_file() or self.are_apparmor_profiles_disabled() or is_in_user_namespace()
        ):
            self._load_apparmor_profiles()

    def _load_apparmor_profiles(self) -> bool:
        try:
            load_apparmor_profiles(self.find_apparmor_file())
        except errors.MoorageError as error:
            log.warning("%s; plugins run without an AppArmor profile", error)
            return False
        log.info("loaded the AppArmor profiles of plugins")
        return True

    def init_program(self) -> str:
        """Path of a static init program; empty where there is none."""
        paths = (self._root / each for each in INIT_PROGRAMS)
        return next((str(path) for path in paths if os.access(path, os.X_OK)), "")

    def open_files(self) -> int:
        """The kernel's bound for the limit of open files."""
        most = kernel_parameter("fs/nr_open", self._root) or ""
        return int(most) if most.isdecimal() else 1 << 20

    def rlimit_bounds(self) -> dict[str, int]:
        """This process's hard limits, where it may not raise them (and so what it starts may not); empty else."""
        if effective_capabilities(self._root) >> _CAP_SYS_RESOURCE & 1:
            return {}
        numbers = {name: getattr(resource, f"RLIMIT_{name.upper()}", None) for name in RLIMITS}
        return {name: resource.getrlimit(number)[1] for name, number in numbers.items() if number is not None}


def find_apparmor_parser() -> str | None:
    """Path of the program that loads profiles."""
    return shutil.which("apparmor_parser", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def load_apparmor_profiles(file: Path | None) -> None:
    """Load the profiles of plugins into the kernel, from this file or else from this program's own text.

    Raises: Unsupported without the parser.
    Raises: MoorageError with the message of the parser.
    """
    parser = find_apparmor_parser()
    if parser is None:
        raise errors.Unsupported(
            "cannot load the AppArmor profiles of plugins: there is no apparmor_parser on this host; "
            "install it (Debian: apt install apparmor)"
        )
    command = [parser, "--replace", "--skip-cache", "--quiet", *([str(file)] if file else [])]
    text = None if file else profiles_text().encode()
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=_LOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise errors.MoorageError(f"cannot load the AppArmor profiles of plugins: {error}") from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise errors.MoorageError(f"cannot load the AppArmor profiles of plugins: {words}")


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
