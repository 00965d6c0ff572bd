"""The programs of the package: ``moorage``, also as ``python -m moorage``, ``mount.moorage`` and ``umount.moorage``.

They are in every installation, and what they need comes with the extra ``engine``.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ("main", "mount", "umount")


def main() -> None:
    """Run ``moorage``."""
    with _advice("moorage"):
        from moorage.cli.quick.entry import main as run

        run()


def mount() -> None:
    """Run ``mount.moorage``."""
    with _advice("mount.moorage"):
        from moorage.cli.volumes.mount_helper import mount as run

        run()


def umount() -> None:
    """Run ``umount.moorage``."""
    with _advice("umount.moorage"):
        from moorage.cli.volumes.mount_helper import umount as run

        run()


@contextmanager
def _advice(program: str) -> Iterator[None]:
    """Exit with advice if a library is missing; a program imports what it needs when it needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "moorage":
            raise
        sys.exit(f"{program}: cannot run: there is no Python module {error.name}; run: pip install 'moorage[engine]'")


if __name__ == "__main__":
    main()
