"""Whether containerd has a plugin's package still, and how a user gets it back.

A package is lost where containerd's database was lost or replaced, or where somebody removed the image record or the
root's snapshot. The plugin's own record names both still.
"""

from typing import TYPE_CHECKING

from moorage import errors
from moorage.plugins import parse_reference

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage
    from moorage.distribution.package import Package
    from moorage.engine.plugin import Plugin

__all__ = ("is_lost", "is_package_of", "lost_package", "way_back", "way_to_repair")

_LOAD = "moorage load with an archive of it"


async def is_lost(storage: "Storage", plugin: "Plugin") -> bool:
    """Whether containerd lacks the image record or the root of a plugin. Raises: Unavailable."""
    try:
        await storage.get_image(plugin.record.image)
        await storage.get_snapshot(plugin.record.snapshotter, plugin.record.snapshot)
    except errors.NotFound:
        return True
    return False


async def is_package_of(storage: "Storage", plugin: "Plugin", package: "Package") -> bool:
    """Whether a plugin has this very package, and its root is on these very layers. Raises: Unavailable."""
    record = plugin.record
    if record.digest != package.manifest.digest:
        return False
    try:
        await storage.get_image(record.image)
        return (await storage.get_snapshot(record.snapshotter, record.snapshot)).parent == package.chain
    except errors.NotFound:
        return False


def way_back(plugin: "Plugin") -> str:
    """What a user runs to give a plugin its package again, which is not in containerd any more."""
    reference, name = plugin.record.reference, plugin.record.name
    alias = "" if str(parse_reference(reference)) == str(parse_reference(name)) else f"--alias {name} "
    return f"run moorage install {alias}{reference}, {_LOAD}, or moorage create {name} with its directory"


def way_to_repair(plugin: "Plugin") -> str:
    """What a user runs to get damaged or missing blobs of a plugin's package again."""
    option = "--restart " if plugin.record.enabled else ""
    return f"run moorage upgrade {option}{plugin.name}, or {_LOAD}; one that was created here: remove and create it"


def lost_package(plugin: "Plugin", error: errors.MoorageError) -> errors.MoorageError:
    """The error of a start whose root is not in containerd."""
    return errors.MoorageError(
        f"its package is not in containerd any more ({error}); its settings and data are; "
        f"to get it back {way_back(plugin)}"
    )
