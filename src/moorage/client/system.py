"""Calls for the engine as a whole: versions, information, events, disk usage."""

from collections.abc import Iterator, Mapping, Sequence

from moorage.api.schema.system import (
    AuthRequest,
    AuthStatus,
    DiskUsageReport,
    EventMessage,
    PruneReport,
    SystemInfo,
    SystemVersion,
)
from moorage.client.transport import OWN, EngineTransport, encode_filters

__all__ = ("SystemClient",)


class SystemClient(EngineTransport):
    """Calls for the engine as a whole."""

    def version(self) -> SystemVersion:
        """The versions of the engine and of its API."""
        return self._get(SystemVersion, "/version")

    def info(self) -> SystemInfo:
        """The engine and its host."""
        return self._get(SystemInfo, "/info")

    def log_in(self, request: AuthRequest) -> AuthStatus:
        """Check credentials against a registry."""
        return self._send(AuthStatus, "POST", "/auth", body=request)

    def events(
        self, since: str = "", filters: Mapping[str, Sequence[str]] | None = None, until: str = ""
    ) -> Iterator[EventMessage]:
        """Events as they occur; before them the stored ones from ``since`` on. Ends at ``until``, if given.

        Both are seconds since 1970 or RFC 3339.
        """
        query = {key: value for key, value in (("since", since), ("until", until)) if value}
        yield from self._lines(EventMessage, "/events", {**query, **encode_filters(filters)})

    def disk_usage(self) -> DiskUsageReport:
        """What plugins occupy on the disk."""
        return self._get(DiskUsageReport, f"{OWN}/df")

    def prune(self) -> PruneReport:
        """Remove unused data."""
        return self._send(PruneReport, "POST", f"{OWN}/prune")
