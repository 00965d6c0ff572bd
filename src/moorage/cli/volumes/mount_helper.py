"""``mount.moorage`` and ``umount.moorage``: what mount(8) and umount(8) run for ``mount -t moorage DRIVER/NAME DIR``.

The volume is mounted for an owner, the mount point, and its path on the host is bound there. The bind has the mark
``helper=moorage``, so that umount(8) runs the other helper, which releases the volume, whatever its file system is.

Source: mount(8) and umount(8), EXTERNAL HELPERS.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import quote

from moorage import errors
from moorage.client.host import DEFAULT_HOST

if TYPE_CHECKING:
    from moorage.api.schema.plugins import PluginDetails
    from moorage.client import MoorageClient

__all__ = ("bind_options", "mount", "split_source", "umount")

_HELPER = "helper=moorage"
_PASSED = frozenset(
    (
        "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime", "diratime", "nodiratime",
        "relatime", "norelatime", "strictatime", "nostrictatime", "symfollow", "nosymfollow",
    )
)  # fmt: skip
"""Options of the bind."""
_IGNORED = frozenset(
    ("defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group", "async", "silent")
)
"""Options for mount(8) itself, and what every mount has."""
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")
# Exit statuses. Source: mount(8).
_WRONG, _FAILED = 1, 32


def mount() -> None:
    """``mount.moorage DRIVER/NAME DIR [-sfnv] [-o OPTIONS]``; exits with the status of mount(8)."""
    _exit("mount.moorage", _mount)


def umount() -> None:
    """``umount.moorage DIR [-flnrv]``; exits with the status of umount(8)."""
    _exit("umount.moorage", _umount)


def split_source(source: str, drivers: Sequence[str]) -> tuple[str, str]:
    """The driver and the volume in DRIVER/NAME, of these drivers; the longest driver that fits.

    Raises:
        errors.NotFound: it begins with none of them
        errors.Invalid: it is no DRIVER/NAME
    """
    known = {name for each in drivers for name in (each, each.removesuffix(":latest"))}
    cuts = [position for position, character in enumerate(source) if character == "/"]
    if not cuts or not source.rpartition("/")[2]:
        raise errors.Invalid(f"cannot mount {source!r}: give DRIVER/NAME, as in vieux/sshfs/data")
    for cut in reversed(cuts):
        if source[:cut] in known:
            return source[:cut], source[cut + 1 :]
    listed = ", ".join(sorted(drivers)) or "none"
    raise errors.NotFound(f"cannot mount {source}: it names no volume driver; known are: {listed}")


def bind_options(text: str) -> tuple[list[str], str]:
    """The options of the bind, and the engine's host ("" where it is not given), of those that mount(8) passes.

    Raises:
        errors.Invalid: an option is unknown
    """
    passed, host = [_HELPER], ""
    for option in filter(None, text.split(",")):
        key, _, value = option.partition("=")
        if key == "host":
            host = value
        elif option in _PASSED:
            passed.append(option)
        elif option not in _IGNORED and not key.startswith(("x-", "X-", "comment")):
            raise errors.Invalid(
                f"unknown option {option}: options of a volume are given when it is created, with moorage volume create"
            )
    return passed, host


def owner_of(directory: str) -> str:
    """The owner of a mount at a mount point: its path, as printable ASCII."""
    return quote(directory, safe=_PRINTABLE)


def _mount(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("mount.moorage", allow_abbrev=False)
    parser.add_argument("source")
    parser.add_argument("directory")
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("-N", "-t", dest="unused")
    for letter in "snv":
        parser.add_argument(f"-{letter}", action="store_true")
    parser.add_argument("-f", dest="is_fake", action="store_true")
    given = parser.parse_args(arguments)
    options, host = bind_options(",".join(given.options))
    directory = os.path.realpath(given.directory)
    client = _client(host)
    driver, volume = split_source(given.source, [each.name for each in _drivers(client)])
    if given.is_fake:
        return 0
    owner = owner_of(directory)
    if others := [f"{found}/{other}" for found, other in _mounts_of(client, owner)]:
        raise errors.Conflict(f"cannot mount {given.source}: {', '.join(others)} is mounted at {directory}")
    try:
        path = client.mount_volume(volume, owner, driver).mountpoint
    except errors.MoorageError as error:  # often in the driver's words, which do not say what was to be mounted
        raise type(error)(f"cannot mount {given.source}: {error}") from error
    command = ["mount", "-i", "--bind", "-o", ",".join(options), "--", path, directory]
    status = subprocess.run(command, check=False).returncode
    if status:
        client.unmount_volume(volume, owner, driver)
    return status


def _umount(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("umount.moorage", allow_abbrev=False)
    parser.add_argument("directory")
    parser.add_argument("-N", "-t", dest="unused")
    for letter in "flnrv":
        parser.add_argument(f"-{letter}", action="store_true")
    given = parser.parse_args(arguments)
    # not resolved: what is mounted there may hang, and umount(8) gives the path as mountinfo has it
    directory = os.path.abspath(given.directory)
    flags = [f"-{letter}" for letter in "flr" if getattr(given, letter)]
    status = subprocess.run(["umount", "-i", *flags, "--", directory], check=False).returncode
    if status:
        return status
    client, owner = _client(""), owner_of(directory)
    for driver, volume in _mounts_of(client, owner):
        client.unmount_volume(volume, owner, driver)
    return 0


def _client(host: str) -> "MoorageClient":
    from moorage.client import MoorageClient

    return MoorageClient(host or os.environ.get("MOORAGE_HOST") or DEFAULT_HOST)


def _drivers(client: "MoorageClient") -> "list[PluginDetails]":
    return client.plugins({"capability": ["volumedriver"]})


def _mounts_of(client: "MoorageClient", owner: str) -> Iterator[tuple[str, str]]:
    """Driver and volume of each mount of an owner."""
    for plugin in _drivers(client):
        for each in plugin.moorage.mounts:
            if each.consumer == owner:
                yield plugin.name, each.volume


def _exit(program: str, run: Callable[[Sequence[str]], int]) -> None:
    from moorage.cli.terminal import indented, say_lines

    try:
        status = run(sys.argv[1:])
    except errors.Invalid as error:
        say_lines(indented(f"{program}: {error}"), err=True)
        status = _WRONG
    except (errors.MoorageError, OSError) as error:
        advice = _missing_engine() if isinstance(error, errors.Unavailable) else ""
        say_lines(indented(f"{program}: {error}{advice}"), err=True)
        status = _FAILED
    sys.exit(status)


def _missing_engine() -> str:
    """What is missing where only the library is installed: no engine can have been started from here."""
    if find_spec("click") is not None:
        return ""
    return "; the engine is not installed here, there is no Python module click; run: pip install 'moorage[engine]'"
