"""A plugin as a directory: ``config.json`` beside ``rootfs/``."""

import os
import stat
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage.host.files import read_regular
from moorage.oci.limits import CONFIG_BYTES
from moorage.plugins import ParsedConfig, parse_config

__all__ = ("PluginDirectory", "load_directory")


class PluginDirectory(Struct, frozen=True):
    """A plugin in a directory of this host."""

    path: Path
    parsed: ParsedConfig

    @property
    def rootfs(self) -> Path:
        """Its root file system."""
        return self.path / "rootfs"


def load_directory(path: Path, *, verb: str = "run") -> PluginDirectory:
    """Read and check a plugin's directory (blocking); ``verb`` says in errors what it is for.

    Raises:
        errors.NotFound: the directory or a part of it is missing
        errors.Invalid: it is something else, or its config is invalid, with the path of the value
    """
    try:
        path = Path(os.path.abspath(path))
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot {verb} {path}: the current directory is not there any more") from error
    if path.is_file():
        raise errors.Invalid(f"cannot {verb} the plugin: {path} is a file; give its directory")
    _check_directory(path, "plugin", verb)
    config = path / "config.json"
    try:
        raw = read_regular(config, CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        raise errors.NotFound(f"cannot {verb} {path}: there is no config.json in it") from error
    except OSError as error:
        raise errors.Invalid(f"cannot read {config}: {error.strerror}") from error
    if len(raw) > CONFIG_BYTES:
        raise errors.Invalid(f"cannot read {config}: it has more than {CONFIG_BYTES} bytes")
    try:
        parsed = parse_config(raw)
    except errors.Invalid as error:
        raise errors.Invalid(f"{path}: {error}") from error
    _check_directory(path / "rootfs", "root file system", verb)
    return PluginDirectory(path, parsed)


def _check_directory(path: Path, what: str, verb: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.NotFound(f"cannot {verb} the plugin: there is no {what} at {path}") from error
    except OSError as error:
        raise errors.Invalid(f"cannot {verb} the plugin: {what} {path}: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise errors.Invalid(f"cannot {verb} the plugin: its {what}, {path}, is not a directory")
