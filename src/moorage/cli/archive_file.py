"""Files that commands write for the user: whole or not there, and never in the place of a device or a link."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from moorage import errors

__all__ = ("write_archive",)


def write_archive(output: Path, pieces: Iterable[bytes]) -> bool:
    """Write the pieces into a file; whether it is a regular one, which is whole or as it was before.

    A device, a named pipe or ``/dev/stdout`` is written into: a new file in its place would take it from everybody
    else on the machine. Of a symbolic link the file is replaced that it leads to. Raises: Invalid for what cannot be
    written; what ``pieces`` raises.
    """
    try:
        if _is_written_in_place(output):
            with output.open("wb") as file:
                file.writelines(pieces)
            return False
        _replace(Path(os.path.realpath(output)), pieces)
    except OSError as error:
        raise errors.Invalid(f"cannot write {output}: {error.strerror}") from error
    return True


def _is_written_in_place(output: Path) -> bool:
    try:
        found = output.stat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return True
    real = os.path.realpath(output)  # names no file where /dev/fd/N leads to one that was deleted
    return not os.path.exists(real) or not os.path.samefile(output, real)


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    half = path.with_name(f".moorage-{os.getpid()}.new")  # short, whatever the length of the name itself
    try:
        with half.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        half.rename(path)
    finally:
        half.unlink(missing_ok=True)
