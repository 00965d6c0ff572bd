"""Which snapshotter has the root file systems of plugins."""

import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.host.mounts import mount_all, unmount_all_below
from moorage.packages.content import LEASE_PREFIX, end_lease

if TYPE_CHECKING:
    from moorage.containerd.storage import Storage

__all__ = ("SNAPSHOTTERS", "choose_snapshotter")

log = logging.getLogger(__name__)

SNAPSHOTTERS = ("overlayfs", "native")
"""Those that ``choose_snapshotter`` chooses between."""


async def choose_snapshotter(storage: "Storage", scratch: Path) -> str:
    """overlayfs if a trial mount works, else native: containerd reports one as working that cannot mount.

    The trial has two layers, because the first one alone is a plain bind mount. ``scratch`` is an existing directory
    for its mount point.

    Raises:
        errors.Unavailable: it cannot be tried: the disk is full, or containerd does not answer
    """
    lease = base = f"{LEASE_PREFIX}trial-{secrets.token_hex(8)}"
    target = scratch / base
    leased = storage.under(lease)
    try:
        await storage.create_lease(lease)
        await leased.prepare_snapshot("overlayfs", f"{base}-1")
        await leased.commit_snapshot("overlayfs", base, f"{base}-1")
        mounts = await leased.prepare_snapshot("overlayfs", f"{base}-2", base)

        def attempt() -> None:
            target.mkdir()
            try:
                mount_all(mounts, target)
            finally:
                unmount_all_below(target)
                target.rmdir()

        await run_blocking(attempt)
    except errors.Unavailable:
        raise
    except OSError as error:
        raise errors.Unavailable(f"cannot try a mount at {target}: {error.strerror}") from error
    except errors.MoorageError as error:
        if errors.is_disk_full(error):  # says nothing about overlayfs
            raise errors.Unavailable(f"cannot use containerd's store: the disk is full ({error})") from error
        log.warning("overlayfs cannot be used, every plugin gets a whole copy of its files: %s", error)
        return "native"
    finally:
        await end_lease(storage, lease)
    return "overlayfs"
