"""Platforms in Go's names, and the one table of architectures: how kernels, packagers and Go name each.

Source: containerd's platforms package (``normalizeArch``) and uname(2) of each kernel.
"""

import sys

from msgspec import Struct

__all__ = ("MACHINES", "Platform", "architecture_of_machine", "normalized", "platform_of_machine")

MACHINES: dict[str, tuple[str, str]] = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv7": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv5tejl": ("arm", "v5"),
    "loongarch64": ("loong64", ""),
    "ppc64le": ("ppc64le", ""),
    "ppc64": ("ppc64", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
    "mips64el": ("mips64le", ""),
    "mipsel": ("mipsle", ""),
}
"""Names of ``uname -m`` and of packagers, with Go's architecture and variant. What is not here has one name for all."""

_BIG_AND_LITTLE = ("mips", "mips64")
"""Machines that uname names without their byte order."""

_DEFAULT_VARIANTS = {("arm64", "v8"), ("amd64", "v1")}
"""Variants that every processor of the architecture has: the same as none."""


class Platform(Struct, frozen=True):
    """What a package is built for, in Go's names."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(each for each in (self.os, self.architecture, self.variant) if each)

    def rank(self, other: "Platform") -> int | None:
        """How well a package for ``other`` runs on this platform: 0 is the best; None where it does not."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return None
        if other.variant == self.variant:
            return 0
        if not other.variant or not self.variant:
            return 1
        is_older = other.variant < self.variant and self.architecture == "arm"  # v6 runs on v7
        return 2 + ord(self.variant[-1]) - ord(other.variant[-1]) if is_older else None


def normalized(os: str, architecture: str, variant: str = "") -> Platform:
    """The platform in Go's names, whatever names an index uses for it; a default variant is left out."""
    known, implied = MACHINES.get(architecture, (architecture, ""))
    variant = variant or implied
    if known == "arm" and variant in ("5", "6", "7", "8"):
        variant = f"v{variant}"
    return Platform(os, known, "" if (known, variant) in _DEFAULT_VARIANTS else variant)


def platform_of_machine(machine: str) -> Platform:
    """The platform of a Linux host whose ``uname -m`` is this."""
    is_little = machine in _BIG_AND_LITTLE and sys.byteorder == "little"
    return normalized("linux", f"{machine}le" if is_little else machine)


def architecture_of_machine(machine: str) -> str:
    """Go's name of the architecture of a host whose ``uname -m`` is this."""
    return platform_of_machine(machine).architecture
