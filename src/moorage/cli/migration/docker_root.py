"""Managed plugins in the data directory of a dockerd: their packages, settings and data. Nothing in it is changed.

Source: moby daemon/pkg/plugin/manager.go (plugins/<id>/config.json, rootfs, propagated-mount), backend_linux.go
(plugins/storage, a content store), and daemon/volume/service/store.go (volumes/metadata.db, which a daemon locks).
"""

import fcntl
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from moorage import errors
from moorage.cli.archives import archive_file, chunks_of, open_file
from moorage.oci.media_types import DOCKER_MANIFEST

__all__ = (
    "DockerPlugin",
    "changed_settings",
    "config_path",
    "find_plugin",
    "is_complete",
    "is_daemon_running",
    "layer_paths",
    "oci_archive",
)

_ID = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class DockerPlugin(Struct, frozen=True):
    """A managed plugin of a dockerd."""

    id: str
    name: str
    """With its tag."""
    reference: str
    """What it was pulled from, in full; its name for one that was created."""
    is_enabled: bool
    directory: Path
    """``plugins/<id>``."""
    manifest: str
    """Digest of its manifest in ``plugins/storage``."""
    config_digest: str
    """Digest of its config there."""
    config: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def propagated_mount(self) -> Path:
        """Its data below its propagated mount; may be missing."""
        return self.directory / "propagated-mount"

    @property
    def propagated_path(self) -> str:
        """The path of its propagated mount inside it; empty for none."""
        return str(self.config.get("PropagatedMount") or "")


def find_plugin(root: Path, name: str) -> DockerPlugin:
    """The plugin with this name, full id, or beginning of an id.

    Raises:
        errors.NotFound: there is none; the text lists those that there are
        errors.Invalid: the directory is no data directory of a dockerd, or several ids begin so
        errors.Denied: the user may not read it
    """
    try:
        ids = sorted(each for each in os.listdir(root / "plugins") if _ID.fullmatch(each))
    except PermissionError as error:
        raise errors.Denied(f"cannot read {root}: permission denied; run this with sudo") from error
    except OSError as error:
        raise errors.Invalid(
            f"cannot read {root}: it is no data directory of a Docker daemon; docker info shows which one is"
        ) from error
    plugins = [found for id in ids if (found := _read(root / "plugins" / id)) is not None]
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    matching = [each for each in plugins if each.name == tagged] or [each for each in plugins if each.id == name]
    matching = matching or [each for each in plugins if name and each.id.startswith(name)]
    if len(matching) > 1:
        raise errors.Invalid(f"cannot choose a plugin: several ids in {root} begin with {name}")
    if not matching:
        known = ", ".join(sorted(each.name for each in plugins)) or "none"
        raise errors.NotFound(f"cannot find plugin {name} in {root}; known are: {known}")
    return matching[0]


def is_daemon_running(root: Path) -> bool:
    """Whether a dockerd works on this data directory: it locks its database of volumes."""
    try:
        with (root / "volumes/metadata.db").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def changed_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the defaults of the config, as NAME=VALUE for ``moorage set``."""
    found = []
    defaults = {each["Name"]: each.get("Value") for each in config.get("Env") or ()}
    for text in settings.get("Env") or ():
        name, _, value = text.partition("=")
        if value != (defaults.get(name) or ""):
            found.append(f"{name}={value}")
    for key, field, entries in (
        ("Mounts", "Source", config.get("Mounts")),
        ("Devices", "Path", (config.get("Linux") or {}).get("Devices")),
    ):
        before = {each.get("Name"): each.get(field) for each in entries or ()}
        for each in settings.get(key) or ():
            name, value = each.get("Name"), each.get(field)
            if name and value != before.get(name):
                found.append(f"{name}.{field.lower()}={value or ''}")
    arguments = config.get("Args") or {}
    if arguments.get("Name") and list(settings.get("Args") or ()) != list(arguments.get("Value") or ()):
        found.append(f"{arguments['Name']}={shlex.join(settings.get('Args') or ())}")
    return found


def is_complete(root: Path, plugin: DockerPlugin) -> bool:
    """Whether the daemon has all parts of the package.

    A dockerd that removes a plugin deletes the manifests of all others, and the layers of those that it has pulled.
    Source: moby daemon/pkg/plugin/manager.go (GC), fetch_linux.go (storeFetchMetadata).

    Raises:
        errors.Invalid: the manifest makes no sense
    """
    try:
        _, document = _read_manifest(root, plugin)
        for each in (document["config"], *document["layers"]):
            _blob(root, plugin, each["digest"])
    except errors.NotFound:
        return False
    return True


def config_path(root: Path, plugin: DockerPlugin) -> Path:
    """The config as it was created or pulled, without settings. Raises: NotFound where it is missing."""
    return _blob(root, plugin, plugin.config_digest)


def oci_archive(root: Path, plugin: DockerPlugin) -> Iterator[bytes]:
    """The package of a plugin as an OCI archive, with its manifest unchanged.

    Raises:
        errors.NotFound: a part of it is missing
        errors.Invalid: the manifest makes no sense
    """
    manifest, document = _read_manifest(root, plugin)
    parts = [document["config"]["digest"], *(each["digest"] for each in document["layers"])]
    names = {"io.containerd.image.name": plugin.name}
    if plugin.reference != plugin.name:
        names["moorage.reference"] = plugin.reference
    entry = {
        "mediaType": document.get("mediaType") or DOCKER_MANIFEST,
        "digest": plugin.manifest,
        "size": manifest.stat().st_size,
        "annotations": names,
    }
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    yield from archive_file("oci-layout", iter([b'{"imageLayoutVersion": "1.0.0"}']), 31)
    yield from archive_file("index.json", iter([index]), len(index))
    for digest in dict.fromkeys((plugin.manifest, *parts)):
        path = _blob(root, plugin, digest)
        with open_file(path) as file:
            yield from archive_file(f"blobs/sha256/{path.name}", chunks_of(file), path.stat().st_size)
    yield bytes(1024)


def layer_paths(root: Path, plugin: DockerPlugin) -> list[Path]:
    """The layers of a plugin, lowest first. Raises: as ``oci_archive``."""
    _, document = _read_manifest(root, plugin)
    return [_blob(root, plugin, each["digest"]) for each in document["layers"]]


def _read_manifest(root: Path, plugin: DockerPlugin) -> tuple[Path, dict[str, Any]]:
    path = _blob(root, plugin, plugin.manifest)
    try:
        document = json.loads(path.read_bytes())
        for each in (document["config"], *document["layers"]):
            each["digest"]
    except (ValueError, LookupError, TypeError) as error:
        raise errors.Invalid(f"cannot read {path}: it is no manifest") from error
    assert isinstance(document, dict)
    return path, document


def _blob(root: Path, plugin: DockerPlugin, digest: object) -> Path:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise errors.Invalid(f"cannot migrate plugin {plugin.name}: {digest!r} is no digest of its package")
    path = root / "plugins/storage/blobs/sha256" / digest.partition(":")[2]
    if not path.is_file():
        raise errors.NotFound(
            f"cannot migrate plugin {plugin.name}: {path} is missing, and its config with it; install it again, or "
            f"run moorage create with {plugin.directory / 'rootfs'} and a config.json of your own"
        )
    return path


def _read(directory: Path) -> DockerPlugin | None:
    """The plugin of a directory; None for one that is not complete."""
    try:
        document = json.loads((directory / "config.json").read_bytes())
        plugin = document["plugin"]
        return DockerPlugin(
            id=str(plugin["Id"]),
            name=str(plugin["Name"]),
            reference=str(plugin.get("PluginReference") or plugin["Name"]),
            is_enabled=bool(plugin.get("Enabled")),
            directory=directory,
            manifest=str(document.get("Manifest") or ""),
            config_digest=str(document.get("Config") or ""),
            config=_stored_config(directory, document) or _mapping(plugin["Config"]),
            settings=_mapping(plugin["Settings"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _stored_config(directory: Path, document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config as it was created or pulled; None where it is missing.

    The one beside the settings has their sources of mounts: in dockerd both are the same objects.
    """
    digest = str(document.get("Config") or "")
    if not _DIGEST.fullmatch(digest):
        return None
    try:
        path = directory.parent / "storage/blobs/sha256" / digest.partition(":")[2]
        return _mapping(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("it is no object")
    return value
