"""The root file system of ``moorage run``: the plugin's directory, with every change stored apart from it."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import anyio

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage.foreground.temporary_directories import TemporaryDirectories
from moorage.host.mounts import bind, mount_overlay
from moorage.runs.plan import RunPlan
from moorage.runs.preparation import MountRoot, Preparation, prepare_run

__all__ = ("prepare",)

log = logging.getLogger(__name__)


async def prepare(plan: RunPlan, rootfs: Path, temporary: TemporaryDirectories) -> None:
    """Make what the plan names, with an overlay over ``rootfs`` as root. May be repeated.

    ``rootfs`` is never written to. Where overlay cannot be used, its files are copied.

    Raises: Unsupported where they could not be run from the copy.
    Raises: Unavailable where there is no room for them, or naming the path that cannot be made.
    """
    preparation: Preparation
    try:
        preparation = await run_blocking(
            lambda: prepare_run(plan, _with_usual_mode(lambda root: mount_overlay(rootfs, temporary.data, root)))
        )
    except errors.Unsupported as error:
        await _copy(error, rootfs, temporary)
        preparation = await run_blocking(
            lambda: prepare_run(plan, _with_usual_mode(lambda root: bind(temporary.changes, root)))
        )
    for problem in preparation.network_problems:
        log.warning("%s", problem)


def _with_usual_mode(mount: Callable[[Path], None]) -> MountRoot:
    """Mount a root and give it the owner and mode that it has when the plugin is installed.

    Containerd ignores the entry of the root directory in a layer, so those of ``rootfs`` (0700 from ``mktemp -d``)
    never come into a package. Source: containerd pkg/archive/tar.go, "file ignored: resolved to root".
    """

    def mount_root(plan: RunPlan) -> None:
        mount(plan.directories.root)
        descriptor = os.open(plan.directories.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, 0, 0)
            os.fchmod(descriptor, 0o755)
        finally:
            os.close(descriptor)

    return mount_root


async def _copy(reason: errors.Unsupported, rootfs: Path, temporary: TemporaryDirectories) -> None:
    try:
        if os.statvfs(temporary.data).f_flag & os.ST_NOEXEC:
            raise errors.Unsupported(
                f"cannot run the plugin from {temporary.data.parent}: it is mounted noexec, and overlay, which works "
                "there all the same, cannot be used; set TMPDIR to a directory on another file system"
            ) from reason
        log.warning("%s; using a copy", reason)
        temporary.changes.mkdir(exist_ok=True)
    except OSError as error:
        raise errors.Unavailable(f"cannot prepare {error.filename or temporary.data}: {error.strerror}") from error
    # cp, because the standard library's copy keeps neither owners nor hard links nor devices
    done = await anyio.run_process(["cp", "-a", f"{rootfs}/.", str(temporary.changes)], check=False)
    if done.returncode:
        cause = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise errors.Unavailable(f"cannot copy {rootfs} to {temporary.changes}: {cause}")
