"""The file that makes podman know published volume drivers: it scans no directory, as dockerd does (row P15).

Source: containers-common docs/containers.conf.5.md, and podman libpod/runtime.go (getVolumePlugin).
"""

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from moorage import errors
from moorage.engine.consumers.names import socket_path
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginView
from moorage.host.files import make_directory, read_regular, write_atomically

__all__ = ("PODMAN_CONFIG", "PodmanConfig", "config_text", "published_drivers")

log = logging.getLogger(__name__)

PODMAN_CONFIG = Path("/etc/containers/containers.conf.d/50-moorage.conf")
"""Read by podman after containers.conf, in the order of the names."""

_HEADER = "# Written by Moorage for the volume drivers that it publishes. Changes to this file are lost.\n"
_ENGINE = "# Engine: "
_CALL_SECONDS = 60
"""Seconds that podman gives to one call. Its default is 5, and the proxy lets a Mount wait 20 for a plugin that is
being restarted."""
_MOST_BYTES = 1 << 20


def published_drivers(plugins: Iterable[PluginView], directory: Path, *, is_installed: bool) -> dict[str, str]:
    """Paths of the sockets of published volume drivers by name, but for those that podman is not to know.

    ``is_installed``: whether podman is, which decides where the user did not.
    """
    found: dict[str, str] = {}
    for plugin in plugins:
        published = plugin.published
        if published is None or plugin.state is State.REMOVING:
            continue
        is_for_podman = is_installed if published.podman is None else published.podman
        if is_for_podman and any(each.capability == "volumedriver" for each in plugin.config.interface.types):
            found |= {name: socket_path(directory, name) for name in published.names}
    return dict(sorted(found.items()))


def config_text(drivers: Mapping[str, str], root: Path) -> str:
    """The file for these sockets by name, of the engine with this data directory."""
    lines = [f'"{name}" = "{path}"' for name, path in drivers.items()]  # names and paths have nothing to escape
    return "\n".join(
        (
            f"{_HEADER}{_ENGINE}{root}",
            "",
            "[engine]",
            f"volume_plugin_timeout = {_CALL_SECONDS}",
            "",
            "[engine.volume_plugins]",
            *lines,
            "",
        )
    )


class PodmanConfig:
    """The file on this machine. A file of the administrator, or of another engine, is never changed."""

    def __init__(self, path: Path, root: Path) -> None:
        """``root``: the data directory of the engine."""
        self.path = path
        self._root = root
        self._problem = ""

    def update(self, plugins: Iterable[PluginView], directory: Path) -> None:
        """Make the file as these plugins say, without any driver remove it (blocking). What fails is logged once."""
        try:
            self._update(published_drivers(plugins, directory, is_installed=_is_installed()))
            self._problem = ""
        except (OSError, errors.Conflict) as error:
            if str(error) != self._problem:
                log.error("podman does not know the published volume drivers: %s", error)
            self._problem = str(error)

    def _update(self, drivers: Mapping[str, str]) -> None:
        present = self._read()
        if not drivers:
            if present is not None and self._is_own(present):
                self.path.unlink(missing_ok=True)
                log.info("removed %s: no volume driver is published", self.path)
            return
        if present is not None and not self._is_own(present):
            raise errors.Conflict(f"{self.path} is not of this engine; rename it, or publish with --no-podman")
        text = config_text(drivers, self._root)
        if text != present:
            make_directory(self.path.parent, 0o755)
            write_atomically(self.path, text.encode(), mode=0o644)
            log.info("wrote %s for volume drivers %s", self.path, ", ".join(drivers))

    def _read(self) -> str | None:
        try:
            return read_regular(self.path, _MOST_BYTES).decode(errors="replace")
        except FileNotFoundError:
            return None

    def _is_own(self, text: str) -> bool:
        """Whether a file was written by this engine, or by one whose data directory does not exist any more."""
        if not text.startswith(_HEADER):
            return False
        engine = text.removeprefix(_HEADER).partition("\n")[0]
        root = engine.removeprefix(_ENGINE)
        return root == str(self._root) or (engine.startswith(_ENGINE) and not os.path.exists(root))


def _is_installed() -> bool:
    return shutil.which("podman", path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin") is not None
