"""The address of an engine as users write it. Imports nothing slow: every command reads it."""

import os

from moorage import errors

TYPE_CHECKING = False  # not from typing, which every command would wait for
if TYPE_CHECKING:
    from moorage.client.ssh_host import SshHost

__all__ = ("DEFAULT_HOST", "contexts_path", "parse_ssh", "socket_of")

DEFAULT_HOST = "unix:///run/moorage/moorage.sock"
_SSH = "ssh://"


def parse_ssh(host: str) -> "SshHost | None":
    """The machine of ``ssh://[USER@]MACHINE[:PORT][/SOCKET]``; None for another kind of host.

    Raises:
        errors.Invalid: it names no machine, or something that a shell or ssh would read otherwise
    """
    if not host.startswith(_SSH):
        return None
    from moorage.client.ssh_host import SshHost  # what most commands do not need

    destination, slash, path = host.removeprefix(_SSH).partition("/")
    port = ""
    if not destination.endswith("]") and ":" in destination:
        destination, _, port = destination.rpartition(":")
    user, at, machine = destination.rpartition("@")
    machine = machine.removeprefix("[").removesuffix("]")
    names = [machine, *([user] if at else [])]
    is_plain = all(name and not name.startswith("-") and _is_plain(name) for name in names)
    if not is_plain or (port and not port.isdecimal()) or not _is_plain(path):
        raise errors.Invalid(f"cannot use host {host}: it must be ssh://[USER@]MACHINE[:PORT][/SOCKET]")
    return SshHost(f"{user}{at}{machine}", port, f"/{path}" if slash and path else "")


def _is_plain(text: str) -> bool:
    return all(each.isalnum() or each in "-_.:/%+" for each in text)


def contexts_path() -> str:
    """The path of the file with the contexts of this user."""
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(folder, "moorage", "contexts.json")


def socket_of(host: str) -> str:
    """The path of the socket of a host: ``unix://PATH``, or an absolute path.

    Raises:
        errors.Invalid: it is neither
    """
    path = host.removeprefix("unix://")
    if not path.startswith("/"):
        if host.startswith(_SSH):
            raise errors.Invalid(f"cannot use host {host}: this command needs an engine of this machine")
        raise errors.Invalid(f"cannot use host {host}: it must be unix:// and an absolute path, or ssh://")
    return path
