"""What a run needs on this host is made here before it: mounted root, socket directory, propagated mount.

Only root gets below a plugin's run-time directory, and what a plugin can write is mounted nosuid and nodev in the
host's view. A bind takes over such flags, so while a container is created its runtime binds from views without them,
which are unmounted right after it. Source: docs/adr/0032-what-a-plugin-writes.md. Everything here blocks.
"""

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from moorage import errors
from moorage.containerd.types import Mount
from moorage.host.directory_tree import Directory
from moorage.host.files import make_directory
from moorage.host.mounts import (
    bind_shared,
    drop_dead_mounts,
    is_mount_point,
    mount_all,
    mount_points_below,
    open_view,
    resolved_by_parent,
    restrict,
    unmount_all_below,
    unmount_views,
)
from moorage.runs.directories import PluginDirectories
from moorage.runs.pins import release_pins
from moorage.runs.plan import LOG_DIRECTORY, RunPlan
from moorage.runs.removal import MountPoint, cover_mount_points
from moorage.runs.user_namespace_root import (
    MountedIdBase,
    make_idmapped_view,
    mount_idmapped_root,
    shift_upper_owners,
)

__all__ = (
    "MountRoot",
    "Preparation",
    "close_views",
    "make_runtime_directory",
    "mount_snapshot",
    "prepare_run",
    "prepare_standby",
    "protect_directories",
    "use_standby",
)

MountRoot = Callable[[RunPlan], None]
"""Mounts the root file system of a plan at ``plan.directories.root``, which exists and is not a mount point.

Raises: Unsupported where it cannot be mounted.
Raises: OSError naming the path.
"""


class Preparation(Struct, frozen=True):
    """What was found while a run was prepared."""

    unmounted: tuple[Path, ...] = ()
    """Mount points below the propagated mount that were unmounted: their server does not exist any more."""
    hung: tuple[Path, ...] = ()
    """Mount points below the propagated mount that stay and do not answer."""
    network_problems: tuple[str, ...] = ()
    """What is wrong with the host's /etc/hosts and /etc/resolv.conf."""


def prepare_run(plan: RunPlan, mount_root: MountRoot, mounted: Sequence[MountPoint] | None = ()) -> Preparation:
    """Make everything that a plan names; call ``close_views`` once its container exists. May be repeated.

    A root that is mounted already stays, unless it was mounted for another user namespace. Where consumers have
    ``mounted`` volumes, and where a mount is dead if those are not known, placeholders are mounted.

    Raises: Invalid for a root through which the runtime would write to the host.
    Raises: Unsupported for a root that cannot be mounted.
    Raises: Unavailable naming the path that cannot be made.
    """
    directories = plan.directories
    network_problems = plan.network_files.refresh() if plan.network_files is not None else ()
    unmounted: Sequence[Path] = ()
    hung: Sequence[Path] = ()
    try:
        if plan.shows_log_directory:
            make_directory(Path(LOG_DIRECTORY), 0o700)
        with make_runtime_directory(directories) as runtime:
            close_views(directories)  # of a run whose creation was cut off
            for path in (directories.root, directories.root_view, directories.propagated_view):
                _ensure_directory(runtime, path.name, mode=0o700)
            _mount_root(plan, runtime, mount_root)
            _open_root_view(plan)
            _make_socket_directory(plan, runtime)
            if plan.config.propagated_mount:
                unmounted, hung = _prepare_propagated_mount(directories, mounted)
            else:
                cover_mount_points(mounted or ())
    except OSError as error:
        raise errors.Unavailable(f"cannot prepare {error.filename or directories.runtime}: {error.strerror}") from error
    return Preparation(tuple(unmounted), tuple(hung), tuple(network_problems))


def prepare_standby(plan: RunPlan) -> None:
    """Make what the container of a standby needs, while the run before it uses the root and the propagated mount.

    Call ``close_views`` once the container exists, and ``use_standby`` before its start. May be repeated.

    Raises: Invalid as ``prepare_run``; Unavailable where what both use is not mounted, or something cannot be made.
    """
    directories = plan.directories
    try:
        with make_runtime_directory(directories) as runtime:
            close_views(directories)
            target = directories.propagated_mount if plan.config.propagated_mount else directories.root
            is_mounted = is_mount_point(directories.root) and is_mount_point(target)
            if not is_mounted or MountedIdBase(runtime).get() != plan.id_base:
                raise errors.Unavailable("cannot prepare a standby: the root of the plugin is not mounted")
            _open_root_view(plan)
            _make_socket_directory(plan, runtime)
            if plan.config.propagated_mount:
                open_view(target, directories.propagated_view, recursive=True)
    except OSError as error:
        raise errors.Unavailable(f"cannot prepare {error.filename or directories.runtime}: {error.strerror}") from error


def use_standby(plan: RunPlan, mounted: Sequence[MountPoint] | None = ()) -> Preparation:
    """Make for a standby what ``prepare_run`` makes for each run; its container sees that. May not be repeated.

    Raises: Unavailable naming the path that cannot be changed.
    """
    directories = plan.directories
    network_problems = plan.network_files.refresh() if plan.network_files is not None else ()
    unmounted: Sequence[Path] = ()
    hung: Sequence[Path] = ()
    try:
        if plan.config.propagated_mount:
            unmounted, hung = _clear_propagated_mount(directories, mounted)
        else:
            cover_mount_points(mounted or ())
        with make_runtime_directory(directories) as runtime:
            unmount_all_below(directories.socket_directory)
            runtime.remove(directories.socket_directory.name)
            here = {"src_dir_fd": runtime.fileno(), "dst_dir_fd": runtime.fileno()}
            os.rename(directories.next_socket_directory.name, directories.socket_directory.name, **here)
    except OSError as error:
        raise errors.Unavailable(f"cannot prepare {error.filename or directories.runtime}: {error.strerror}") from error
    return Preparation(tuple(unmounted), tuple(hung), tuple(network_problems))


def mount_snapshot(mounts: Sequence[Mount]) -> MountRoot:
    """A root that is these mounts of a containerd snapshot, with the owners that the plan's user namespace needs."""

    def mount_root(plan: RunPlan) -> None:
        directories = plan.directories
        shift_upper_owners(mounts, plan.id_base)
        if plan.id_base:
            mount_idmapped_root(mounts, directories.root, plan.id_base, directories.runtime / "l")
        else:
            mount_all(mounts, directories.root)

    return mount_root


def close_views(directories: PluginDirectories) -> None:
    """Unmount the views that the runtime has bound from. May be repeated.

    Their directories stay as long as the plugin's: runc enters the one of the root before it adds a process.

    Raises: Unavailable naming what stays mounted.
    """
    try:
        unmount_views((directories.root_view, directories.propagated_view, directories.idmapped_view))
    except OSError as error:
        raise errors.Unavailable(f"cannot unmount {error.filename}: {error.strerror}") from error


def protect_directories(directories: PluginDirectories) -> None:
    """Set the modes and mount flags of ``prepare_run`` on what an earlier engine, perhaps an older version, has made.

    Raises: Unavailable naming what is not protected.
    """
    close_views(directories)
    release_pins(directories.pins)
    try:
        make_runtime_directory(directories).close()
        for target in (directories.root, directories.propagated_mount):
            if is_mount_point(target):
                restrict(target)
    except OSError as error:
        raise errors.Unavailable(f"cannot protect {error.filename}: {error.strerror}") from error


def make_runtime_directory(directories: PluginDirectories) -> Directory:
    """A plugin's run-time directory, open, which only root can enter, as is the one of all plugins above it.

    Raises: OSError.
    """
    base = directories.runtime.parent
    with (
        Directory.open(base.parent, may_be_link=True) as top,
        top.make_directory(base.name, mode=0o700, exist_ok=True) as plugins,
    ):
        return plugins.make_directory(directories.runtime.name, mode=0o700, exist_ok=True)


def _mount_root(plan: RunPlan, runtime: Directory, mount_root: MountRoot) -> None:
    """Mount the root where it is not; one that was mounted for another user namespace is mounted again."""
    root, mounted_for = plan.directories.root, MountedIdBase(runtime)
    if is_mount_point(root):
        if mounted_for.get() == plan.id_base:
            return
        unmount_all_below(root)
    mounted_for.clear()
    mount_root(plan)
    if plan.id_base:
        mounted_for.set(plan.id_base)
    restrict(root)


def _open_root_view(plan: RunPlan) -> None:
    directories = plan.directories
    _check_root(directories)
    view = directories.root_view
    if plan.id_base:
        view = make_idmapped_view(directories.idmapped_view, plan.id_base)
    open_view(directories.root, view)


def _check_root(directories: PluginDirectories) -> None:
    """Raises: Invalid where /dev is a link: runc 1.1 makes links of its own there, and removes ptmx, on the host.

    It does so for each container, before anything is mounted. Source: libcontainer/rootfs_linux.go, setupDevSymlinks.
    """
    with Directory.open(directories.root) as root:
        status = root.status("dev")
    if status is not None and stat.S_ISLNK(status.st_mode):
        raise errors.Invalid("cannot run the plugin: /dev in its root file system is a symbolic link")


def _make_socket_directory(plan: RunPlan, runtime: Directory) -> None:
    """A new, empty directory that the plugin's user can write to: many plugins bind without unlinking first."""
    socket_directory, config = plan.socket_directory, plan.config
    unmount_all_below(socket_directory)
    runtime.remove(socket_directory.name)
    with ExitStack() as opened:
        directory = runtime
        for name in (socket_directory.name, *Path(config.interface.socket).parent.parts):
            uid, gid = config.user.uid + plan.id_base, config.user.gid + plan.id_base
            made = directory.make_directory(name, mode=0o700, uid=uid, gid=gid)
            directory = opened.enter_context(made)


def _prepare_propagated_mount(
    directories: PluginDirectories, mounted: Sequence[MountPoint] | None
) -> tuple[Sequence[Path], Sequence[Path]]:
    target = directories.propagated_mount
    found = _clear_propagated_mount(directories, mounted)
    open_view(target, directories.propagated_view, recursive=True)
    return found


def _clear_propagated_mount(
    directories: PluginDirectories, mounted: Sequence[MountPoint] | None
) -> tuple[Sequence[Path], Sequence[Path]]:
    """What of an earlier run cannot be used any more is unmounted or covered, in the container of a standby, too."""
    target = directories.propagated_mount
    with Directory.open(target.parent) as parent:
        _ensure_directory(parent, target.name, mode=0o755)
    if mounted is None:
        top = Path(resolved_by_parent(target))
        mounted = [MountPoint(top, str(each.relative_to(top))) for each in mount_points_below(target) if each != top]
    unmounted, hung = drop_dead_mounts(target, [Path(resolved_by_parent(each.path)) for each in mounted])
    if not is_mount_point(target):
        bind_shared(target)
    cover_mount_points(mounted)
    restrict(target)
    return unmounted, hung


def _ensure_directory(parent: Directory, name: str, *, mode: int) -> None:
    """Make a directory where there is none; an existing one, perhaps with something mounted on it, stays as it is."""
    try:
        parent.make_directory(name, mode=mode).close()
    except FileExistsError:
        pass
