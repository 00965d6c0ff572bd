"""The files of a container as its process sees them, examined from the host without entering its mount namespace.

They are the plugin's, so they are opened beneath its root or beneath the source of a mount, and never through a link
that the host would resolve. Everything here blocks.
"""

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from msgspec import Struct

from moorage import errors
from moorage.containerd.processes import ExecCommand, derive_process
from moorage.containerd.types import Spec
from moorage.host.directory_tree import open_beneath
from moorage.host.proc import descriptor_path

__all__ = (
    "ContainerFile",
    "ContainerFiles",
    "NotVisible",
    "derive_command",
    "find_user",
    "open_container_files",
    "pack_files",
    "unpack_files",
    "unpack_into",
)

_FILE_LIMIT = 1 << 20
_COPY_BYTES = 1 << 18
_MOST_ID = (1 << 32) - 2
_OVERFLOW_ID = 65534  # what the kernel shows for an id that a user namespace does not have
_MOST_LINKS = 40  # as many as the kernel follows


class NotVisible(Exception):
    """A path is in a file system that exists only inside the container."""


class _ContainerMount(Struct, frozen=True):
    destination: str
    source: str | None
    """Path on the host; None for a file system that exists only inside the container."""
    is_read_only: bool = False


class ContainerFile(Struct, frozen=True):
    """A file of a container: a path without symbolic links beneath an open file or directory."""

    base: int
    path: str
    """"." for the base itself, which may be a file."""

    def open(self, flags: int) -> int:
        """A descriptor of it; the caller closes it. Raises: OSError."""
        if self.path == ".":
            return os.open(descriptor_path(self.base), flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
        return open_beneath(self.base, self.path, flags, crosses_mounts=True)

    def status(self) -> os.stat_result:
        """Its status, of the link itself for a link. Raises: OSError."""
        descriptor = self.open(os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def read_link(self) -> str | None:
        """The target of a symbolic link; None for anything else. Raises: OSError where it does not exist."""
        descriptor = self.open(os.O_PATH | os.O_NOFOLLOW)
        try:
            is_link = stat.S_ISLNK(os.fstat(descriptor).st_mode)
            return os.readlink("", dir_fd=descriptor) if is_link else None
        finally:
            os.close(descriptor)


class ContainerFiles:
    """The files of one container. ``open_container_files`` makes one."""

    def __init__(self, mounts: Sequence[tuple[_ContainerMount, int | None]]) -> None:
        """``mounts``: each with its open source, None where it does not exist; the root first."""
        self._mounts = mounts

    def find(self, path: str) -> ContainerFile | None:
        """The file at a path inside, links followed as inside; None where there is none.

        Raises: NotVisible.
        """
        rest = [part for part in path.split("/") if part]
        resolved, links = "/", 0
        while rest:
            part = rest.pop(0)
            if part in (".", ".."):
                resolved = posixpath.normpath(posixpath.join(resolved, part))
                continue
            step = posixpath.join(resolved, part)
            try:
                target = self._beneath(step).read_link()
            except OSError:
                return None
            if target is None:
                resolved = step
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            rest = [each for each in target.split("/") if each] + rest
            resolved = "/" if target.startswith("/") else resolved
        return self._beneath(resolved)

    def is_read_only(self, file: ContainerFile) -> bool:
        """Whether the mount that a file is in is read-only for the container."""
        return any(mount.is_read_only for mount, base in self._mounts if base == file.base)

    def host_path(self, path: str) -> str:
        """The host's path of a path inside, for people."""
        mount, _ = self._mount_of(path)
        return posixpath.join(mount.source or "/", posixpath.relpath(path, mount.destination))

    def _beneath(self, path: str) -> ContainerFile:
        mount, base = self._mount_of(path)
        if mount.source is None:
            raise NotVisible
        if base is None:
            raise FileNotFoundError(mount.source)
        return ContainerFile(base, posixpath.relpath(path, mount.destination))

    def _mount_of(self, path: str) -> tuple[_ContainerMount, int | None]:
        best = self._mounts[0]
        for mount, base in self._mounts:
            is_inside = path == mount.destination or path.startswith(mount.destination.rstrip("/") + "/")
            if is_inside and len(mount.destination) >= len(best[0].destination):
                best = mount, base
        return best


@contextmanager
def open_container_files(spec: Spec, root: str) -> Iterator[ContainerFiles]:
    """The files of a container with this OCI spec and this root on the host, until the block ends.

    The sources of binds are the host's paths, so links in them are followed.
    """
    mounts = [
        _ContainerMount(
            posixpath.normpath(each["destination"]),
            each["source"] if _is_bind(each) else None,
            "ro" in (each.get("options") or ()),
        )
        for each in spec.get("mounts", ())
    ]
    top = _ContainerMount("/", root, bool((spec.get("root") or {}).get("readonly")))
    with ExitStack() as opened:

        def open_source(source: str | None) -> int | None:
            if source is None:
                return None
            try:
                descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                return None
            opened.callback(os.close, descriptor)
            return descriptor

        yield ContainerFiles([(each, open_source(each.source)) for each in (top, *mounts)])


def _is_bind(mount: Spec) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def derive_command(spec: Spec, root: str, command: ExecCommand) -> dict[str, Any]:
    """The OCI process object of a command in the container with this spec and this root on the host (blocking).

    Raises:
        errors.Invalid: the container has no such user or group
    """
    user = find_user(spec, root, command.user) if command.user else None
    return derive_process(
        spec,
        command.arguments,
        environment=command.environment,
        terminal=command.terminal,
        directory=command.directory,
        user=user,
    )


def find_user(spec: Spec, root: str, text: str) -> dict[str, Any]:
    """The OCI user object of NAME|UID[:GROUP|GID], from the container's own /etc/passwd and /etc/group (blocking).

    Source: moby daemon/exec_linux.go (getUser) and containerd's oci.WithUser: a number needs no entry, a name does.

    Raises:
        errors.Invalid: the container has no such user or group
    """
    name, colon, group = text.partition(":")
    with open_container_files(spec, root) as files:
        users, groups = list(_entries(files, "/etc/passwd")), list(_entries(files, "/etc/group"))
    entry = next((each for each in users if len(each) > 3 and name in (each[0], each[2])), None)
    uid = _number(name) if entry is None else _number(entry[2])
    if uid is None:
        raise errors.Invalid(f"unable to find user {name}: no matching entries in passwd file")
    gid = 0 if entry is None else _number(entry[3]) or 0
    if colon:
        found = _number(group)
        if found is None:
            found = next((_number(each[2]) for each in groups if len(each) > 2 and each[0] == group), None)
        if found is None:
            raise errors.Invalid(f"unable to find group {group}: no matching entries in group file")
        return {"uid": uid, "gid": found}
    more = [] if entry is None else [each for each in groups if len(each) > 3 and entry[0] in each[3].split(",")]
    numbers = {number for each in more if (number := _number(each[2])) is not None} - {gid}
    return {"uid": uid, "gid": gid, "additionalGids": sorted(numbers)} if numbers else {"uid": uid, "gid": gid}


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() and int(text) <= _MOST_ID else None


def _entries(files: ContainerFiles, path: str) -> Iterator[list[str]]:
    """The lines of such a file, divided; none where it cannot be read."""
    try:
        found = files.find(path)
        descriptor = -1 if found is None else found.open(os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, NotVisible):
        return
    if descriptor < 0:
        return
    with open(descriptor, "rb") as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            for line in file.read(_FILE_LIMIT).decode(errors="surrogateescape").splitlines():
                yield line.split(":")


# ------------------------------------------------------------------------------------------------- copies as archives


def pack_files(spec: Spec, root: str, path: str, sink: BinaryIO) -> None:
    """Write a file or a directory of a container as a tar, below its own name (blocking).

    Regular files, directories and symbolic links are in it, with the owners that the container sees; devices, sockets
    and pipes are left out.

    Raises:
        errors.NotFound: there is no such file
        errors.Unsupported: the file exists only inside the container
        OSError: the sink is closed, or the file changes while it is read
    """
    with open_container_files(spec, root) as files:
        found = _find(files, path)
        name = posixpath.basename(posixpath.normpath(path)).strip("/") or "."
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            _pack(archive, found, name, spec.get("linux") or {})


def _find(files: ContainerFiles, path: str) -> ContainerFile:
    try:
        found = files.find(path)
        if found is not None:
            found.status()
            return found
    except NotVisible as error:
        raise errors.Unsupported(f"cannot copy {path}: its file system exists only inside the plugin") from error
    except OSError:
        pass
    raise errors.NotFound(f"cannot copy {path}: the plugin has no such file")


def _pack(archive: tarfile.TarFile, file: ContainerFile, name: str, linux: Mapping[str, Any]) -> None:
    status = file.status()
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = stat.S_IMODE(status.st_mode), int(status.st_mtime)
    entry.uid = _id_inside(status.st_uid, linux.get("uidMappings"))
    entry.gid = _id_inside(status.st_gid, linux.get("gidMappings"))
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, file.read_link() or ""
        archive.addfile(entry)
    elif stat.S_ISREG(status.st_mode):
        with open(file.open(os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as content:
            entry.size = os.fstat(content.fileno()).st_size
            archive.addfile(entry, content)
    elif stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
        descriptor = file.open(os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            names = sorted(os.listdir(descriptor))
        finally:
            os.close(descriptor)
        for each in names:
            _pack(archive, ContainerFile(file.base, posixpath.join(file.path, each)), posixpath.join(name, each), linux)


def _id_inside(number: int, mappings: Sequence[Mapping[str, int]] | None) -> int:
    """What a user or group of the host is in the container's user namespace; the same where it has none."""
    for each in mappings or ():
        if 0 <= number - each["hostID"] < each["size"]:
            return number - each["hostID"] + each["containerID"]
    return _OVERFLOW_ID if mappings else number


def unpack_into(spec: Spec, root: str, path: str, source: BinaryIO) -> None:
    """Unpack a tar into a directory of a container (blocking); files get the owner of the directory.

    Raises:
        errors.NotFound: there is no such directory
        errors.Unsupported: the directory exists only inside the container
        errors.Denied: the directory is read-only for the container
        errors.Invalid: it is no tar, or not one for a directory
        OSError: a file cannot be written
    """
    with open_container_files(spec, root) as files:
        found = _find(files, path)
        if files.is_read_only(found):
            raise errors.Denied(f"cannot copy to {path}: it is read-only for the plugin")
        try:
            directory = found.open(os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except NotADirectoryError as error:
            raise errors.Invalid(f"cannot copy to {path}: it is not a directory of the plugin") from error
        try:
            unpack_files(directory, source, takes_owner=True)
        finally:
            os.close(directory)


def unpack_files(directory: int, source: BinaryIO, *, first_name: str = "", takes_owner: bool = False) -> None:
    """Unpack such a tar beneath an open directory, never through a link (blocking).

    ``first_name`` replaces the first part of every name. ``takes_owner``: the owner of each file is that of the
    directory, not the caller. Set-uid bits are dropped.

    Raises:
        errors.Invalid: it is no tar, or has a name that leads out of the directory, or a device
        OSError: a file cannot be written
    """
    owner = os.fstat(directory)
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for entry in archive:
                parts = [part for part in entry.name.split("/") if part not in ("", ".")]
                if ".." in parts or entry.name.startswith("/"):
                    raise errors.Invalid(f"cannot unpack {entry.name}: it leads out of the directory")
                if parts and first_name:
                    parts[0] = first_name
                if parts:
                    made = _unpack(archive, entry, directory, parts)
                    if takes_owner:
                        os.chown(made[1], owner.st_uid, owner.st_gid, dir_fd=made[0], follow_symlinks=False)
                    os.close(made[0])
    except tarfile.TarError as error:
        raise errors.Invalid(f"cannot unpack: it is no tar archive: {error}") from error


def _unpack(archive: tarfile.TarFile, entry: tarfile.TarInfo, top: int, parts: list[str]) -> tuple[int, str]:
    """Create one file; the open directory that it is in, which the caller closes, and its name there."""
    parent = open_beneath(top, "/".join(parts[:-1]) or ".", os.O_RDONLY | os.O_DIRECTORY, crosses_mounts=True)
    name = parts[-1]
    try:
        if entry.isdir():
            if not _is_directory(parent, name):
                os.mkdir(name, entry.mode & 0o777, dir_fd=parent)
            return parent, name
        if not (entry.isreg() or entry.issym()):
            raise errors.Invalid(f"cannot unpack {entry.name}: it is neither a file, a directory nor a symbolic link")
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        if entry.issym():
            os.symlink(entry.linkname, name, dir_fd=parent)
            return parent, name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(name, flags, entry.mode & 0o777, dir_fd=parent), "wb") as target:
            content = archive.extractfile(entry)
            while content is not None and (data := content.read(_COPY_BYTES)):
                target.write(data)
            os.fchmod(target.fileno(), entry.mode & 0o777)
    except BaseException:
        os.close(parent)
        raise
    return parent, name


def _is_directory(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
