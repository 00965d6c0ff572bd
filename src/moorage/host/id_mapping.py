"""Ids of user namespaces: namespaces that define a mapping, id-mapped mounts, owners of files on disk.

Everything here blocks. Source: mount_setattr(2) and open_tree(2) (Linux 5.12; overlay takes such layers from 5.19 on),
user_namespaces(7).
"""

import ctypes
import errno
import os
import stat
import subprocess
from pathlib import Path

from moorage import errors
from moorage.host import proc
from moorage.host.directory_tree import Directory

__all__ = ("FIRST_BASE", "ID_COUNT", "bind_mapped", "find_base", "mapped_owner", "open_user_namespace", "shift_owners")

ID_COUNT = 65536
"""Ids of each user namespace."""

FIRST_BASE, _END_BASE = 0x70000000, 0x7FFF0000
"""Host ids of user namespaces of plugins: unassigned in systemd's table "Users, Groups, UIDs and GIDs"."""

_MARK = "trusted.moorage.ids"
"""Extended attribute of a directory whose files have all been given the ids from this base on; only root may set it."""

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same numbers on every architecture
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 0x1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_MOUNT_ATTR_IDMAP = 0x100000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]  # type: ignore[mutable-override]  # ctypes reads a list


def open_user_namespace(base: int) -> int:
    """A descriptor of a new user namespace, in which id 0 is ``base`` on the host; the caller closes it.

    Raises: Unsupported if the kernel refuses.
    """
    try:
        process = subprocess.Popen(
            ["unshare", "--user", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise errors.Unsupported(f"cannot create a user namespace: unshare: {error.strerror}") from error
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            process.stdin.write(b"x")
            process.stdin.flush()
            if process.stdout.read(1) != b"x":  # its echo shows that it is in the namespace
                words = process.stderr.read().decode(errors="replace").strip()
                raise errors.Unsupported(f"cannot create a user namespace: {words}")
            proc.write_id_map(process.pid, base, ID_COUNT)
            return os.open(proc.namespace_path("user", process.pid), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise errors.Unsupported(f"cannot create a user namespace: {error.strerror}") from error
        finally:
            process.kill()


def bind_mapped(source: Path, target: Path, user_namespace: int) -> None:
    """Mount a directory at ``target`` with every owner as the user namespace maps it.

    Raises: Unsupported if the kernel or the file system cannot do that.
    """
    try:
        tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), ctypes.c_uint(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC))
        try:
            attributes = _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
            size = ctypes.c_size_t(ctypes.sizeof(attributes))
            _call(_MOUNT_SETATTR, tree, b"", ctypes.c_uint(_AT_EMPTY_PATH), ctypes.byref(attributes), size)
            _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH))
        finally:
            os.close(tree)
    except OSError as error:
        raise errors.Unsupported(f"cannot map the owners of files in {source}: {error.strerror}") from error


def find_base(taken: frozenset[int], start: int) -> int:
    """A base that is not taken: number ``start`` of all, or the next free one. Raises: Unavailable if none is free."""
    count = (_END_BASE - FIRST_BASE) // ID_COUNT
    for step in range(count):
        base = FIRST_BASE + (start + step) % count * ID_COUNT
        if base not in taken:
            return base
    raise errors.Unavailable("cannot give the plugin a user namespace of its own: all ids for them are in use")


def mapped_owner(id: int, base: int) -> int:
    """The owner on disk of what ``id`` of a user namespace owns; base 0 is no user namespace. Ids of others stay."""
    inner = id % ID_COUNT if FIRST_BASE <= id < _END_BASE else id
    return inner + base if inner < ID_COUNT else id


def shift_owners(directory: Path, base: int) -> None:
    """Give everything in a directory that only root can reach the owner that it has under this base.

    Done once: an extended attribute of the directory contains the base of its files. May be interrupted and repeated.
    Set-uid bits stay; file capabilities are lost, as by any change of owner.

    Raises: OSError naming what could not be changed.
    """
    with Directory.open(directory) as top:
        if _marked(top) == base:
            return
        os.setxattr(top.fileno(), _MARK, b"partly")
        for parent, name, _ in top.walk():
            _shift(parent, name, base)
        _shift(top.fileno(), ".", base)
        if base:
            os.setxattr(top.fileno(), _MARK, str(base).encode())
        else:
            os.removexattr(top.fileno(), _MARK)


def _marked(directory: Directory) -> int:
    """The base of its files; 0 without a mark, -1 where a change of them was interrupted."""
    try:
        text = os.getxattr(directory.fileno(), _MARK).decode()
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return 0
        raise
    return int(text) if text.isdigit() else -1


def _shift(parent: int, name: str, base: int) -> None:
    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    owner = mapped_owner(found.st_uid, base), mapped_owner(found.st_gid, base)
    if owner == (found.st_uid, found.st_gid):
        return
    os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
    if stat.S_ISREG(found.st_mode) and found.st_mode & (stat.S_ISUID | stat.S_ISGID):
        os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=parent)


def _call(number: int, *arguments: object) -> int:
    made: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if made < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return made
