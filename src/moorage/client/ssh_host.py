"""An engine of another machine."""

from dataclasses import dataclass

__all__ = ("SshHost",)


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
