"""What ``moorage doctor`` checks, in the order of its report."""

ONLY_WHERE_WRONG = ("containerd's version",)
"""What it reports only where it has found something, as containerd 2.2 or later with control groups version 1."""

SUBJECTS = [
    "permissions",
    "containerd",
    "containerd-shim-runc-v2",
    "runtime",
    "control groups",
    "data directory",
    "containerd's databases",
    "overlay",
    "socket paths",
    "engine",
    "engine socket",
    "dockerd",
    "seccomp",
    "AppArmor",
    "SELinux",
    "user namespaces",
    "init program",
]
