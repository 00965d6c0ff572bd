"""Standard streams and exit statuses of the command line, the same for every command."""

import os
import sys

from moorage import errors

__all__ = ("fill_standard_streams", "is_for_the_journal", "report_failure")

_STDERR = 2
_BROKEN_PIPE = 128 + 13  # as a shell shows SIGPIPE


def fill_standard_streams() -> None:
    """Open what is closed of descriptors 0 to 2.

    Else one would become the next file to be opened: a lock, a database of containerd, with our output in it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)


def is_for_the_journal() -> bool:
    """Whether standard error is the journal of systemd."""
    if "JOURNAL_STREAM" not in os.environ:
        return False
    from moorage._lib.journal import is_journal

    return is_journal(_STDERR, os.environ["JOURNAL_STREAM"])


def report_failure(error: BaseException) -> int:
    """Report a failure of a command on standard error; the exit status.

    Raises:
        BaseException: it is a bug, or an exit that was requested
    """
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):  # the reader of the output closed it
        # else Python reports at its exit that it cannot flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    if isinstance(error, OSError):
        path = f"{error.filename}: " if error.filename else ""
        _complain(f"moorage: {path}{error.strerror or error}")
        return 1
    if isinstance(error, errors.MoorageError):
        _complain(f"moorage: {error}")
        return 1
    raise error


def _complain(text: str) -> None:
    from moorage.cli.terminal import indented, say_lines

    shown = indented(text)
    if is_for_the_journal():
        import logging

        from moorage._lib.journal import prefixed

        shown = prefixed(logging.ERROR, shown)
    say_lines(shown, err=True)
