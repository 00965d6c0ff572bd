"""The address of an engine as users write it. Imports nothing slow: every command reads it."""

from dataclasses import dataclass

from moorage import errors

__all__ = ("DEFAULT_HOST", "SshHost", "parse_ssh", "socket_of")

DEFAULT_HOST = "unix:///run/moorage/moorage.sock"
_SSH = "ssh://"


@dataclass(frozen=True)
class SshHost:
    """An engine of another machine, reached by ``ssh`` and ``moorage dial-stdio`` there."""

    destination: str
    """[USER@]MACHINE."""
    port: str = ""
    socket: str = ""
    """The engine's socket there; empty for the default of that machine."""

    def command(self) -> list[str]:
        """What connects our standard streams to the engine. No word of the address can be an option."""
        port = ["-p", self.port] if self.port else []
        host = ["--host", f"unix://{self.socket}"] if self.socket else []
        return ["ssh", "-T", "-o", "ConnectTimeout=30", *port, "--", self.destination, "moorage", *host, "dial-stdio"]


def parse_ssh(host: str) -> SshHost | None:
    """The machine of ``ssh://[USER@]MACHINE[:PORT][/SOCKET]``; None for another kind of host.

    Raises:
        errors.Invalid: it names no machine, or something that a shell or ssh would read otherwise
    """
    if not host.startswith(_SSH):
        return None
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
