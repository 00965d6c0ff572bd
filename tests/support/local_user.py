"""A local user without privileges: the one who attacks an engine from outside its plugins."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support.limits import limit

USER = 64111
"""A user and group id that no account and no plugin of these tests has."""


def run_as_user(*command: str, uid: int = USER, groups: Sequence[int] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command as a user without privileges, in no group but its own; the result with its output as text."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit(60),
        user=uid,
        group=uid,
        extra_groups=list(groups),
        cwd="/",
    )


def open_to_all(directory: Path) -> Path:
    """The directory, after letting every user through to it: pytest makes its directories for one user only."""
    for above in [directory, *directory.parents]:
        if above.stat().st_uid == os.geteuid() and not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o011)
    return directory
