"""Calls for one plugin, or all of them: lifecycle, settings, policy, output, resource usage."""

import http.client
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from moorage.api.schema.output import LogLine, PluginStats
from moorage.api.schema.packages import TermsRequest
from moorage.api.schema.plugins import (
    HostPath,
    LabelsRequest,
    PackageReplacement,
    PluginDetails,
    PluginPolicy,
    PluginPrivilege,
    PolicyRequest,
    SetRequest,
)
from moorage.client.answers import decode_answer
from moorage.client.transport import OWN, EngineTransport, encode_filters, quoted

__all__ = ("PluginClient",)


class PluginClient(EngineTransport):
    """Calls for plugins. A plugin is named by its name, its id, or the beginning of its id."""

    def plugins(self, filters: Mapping[str, Sequence[str]] | None = None) -> list[PluginDetails]:
        """Every plugin that passes the filters."""
        return self._get(list[PluginDetails], "/plugins", encode_filters(filters))

    def inspect(self, name: str) -> PluginDetails:
        """One plugin, with its processes."""
        return self._get(PluginDetails, f"/plugins/{quoted(name)}/json")

    def create(self, name: str, package: Iterator[bytes]) -> None:
        """Create a plugin from a tar stream of config.json and rootfs/."""
        headers = {"Content-Type": "application/x-tar"}
        with self._open("POST", "/plugins/create", {"name": name}, package, headers) as answer:
            answer.read()

    def replace_package(
        self,
        name: str,
        package: Iterator[bytes],
        *,
        restart: bool = False,
        force: bool = False,
        wait: float = 0,
    ) -> list[str]:
        """Give it the package of such a stream; names of settings that no longer apply.

        ``wait``: seconds until it must be healthy, or is rolled back; 0 to go by ready alone.
        """
        query = {key: "1" for key, is_on in (("restart", restart), ("force", force)) if is_on}
        if wait:
            query["wait"] = f"{wait:g}"
        with self._open(
            "POST", f"{_own(name)}/package", query, package, {"Content-Type": "application/x-tar"}
        ) as answer:
            return decode_answer(answer.read(), PackageReplacement).dropped_settings

    @contextmanager
    def read_files(self, name: str, path: str) -> Iterator[http.client.HTTPResponse]:
        """A file or directory of it as a tar, to be read until the end of the block."""
        with self._open("GET", f"{_own(name)}/archive", {"path": path}) as answer:
            yield answer

    def write_files(self, name: str, path: str, archive: Iterator[bytes]) -> None:
        """Unpack a tar into a directory of it."""
        headers = {"Content-Type": "application/x-tar"}
        with self._open("PUT", f"{_own(name)}/archive", {"path": path}, archive, headers) as answer:
            answer.read()

    def enable(self, name: str, timeout: int = 0) -> None:
        """Start it; returns when it is ready. ``timeout`` in seconds, 0 for the engine's default."""
        self._do("POST", f"/plugins/{quoted(name)}/enable", {"timeout": str(timeout)})

    def disable(self, name: str, *, force: bool = False) -> None:
        """Stop it; returns when no process of it is left."""
        self._do("POST", f"/plugins/{quoted(name)}/disable", _force(force))

    def restart(self, name: str) -> None:
        """Stop it and start it again."""
        self._do("POST", f"{_own(name)}/restart")

    def wait_healthy(self, name: str, within: float) -> None:
        """Return when it is ready, and healthy where it has checks; ``within`` in seconds."""
        self._do("POST", f"{_own(name)}/wait", {"timeout": f"{within:g}"})

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove it."""
        self._do("DELETE", f"/plugins/{quoted(name)}", _force(force))

    def tag(self, name: str, to: str) -> None:
        """Add a name to it."""
        self._do("POST", f"{_own(name)}/tag", {"to": to})

    def rename(self, name: str, to: str) -> None:
        """Replace its name."""
        self._do("POST", f"{_own(name)}/rename", {"name": to})

    def kill(self, name: str, signal: str) -> None:
        """Send a signal to its process, by number or name."""
        self._do("POST", f"{_own(name)}/kill", {"signal": signal})

    def set(self, name: str, assignments: Sequence[str], secrets: Sequence[str] = ()) -> None:
        """Change settings, all or none; values of ``secrets`` are never shown again."""
        self._do("POST", f"{_own(name)}/set", body=SetRequest(list(assignments), list(secrets)))

    def grant(
        self, name: str, privileges: Sequence[PluginPrivilege] | None = None, *, attended: bool = False
    ) -> list[PluginPrivilege]:
        """Grant exactly these privileges (None: all that it requests); ``attended``: a person agreed to them."""
        terms = TermsRequest(attended=attended)
        if privileges is not None:
            terms = TermsRequest(list(privileges), attended=attended)
        return self._send(list[PluginPrivilege], "POST", f"{_own(name)}/grant", body=terms)

    def policy(self, name: str) -> PluginPolicy:
        """When it is restarted, and what confines it."""
        return self._get(PluginPolicy, f"{_own(name)}/policy")

    def set_policy(self, name: str, change: PolicyRequest) -> PluginPolicy:
        """Change its policy; the policy that results."""
        return self._send(PluginPolicy, "PUT", f"{_own(name)}/policy", body=change)

    def set_labels(self, name: str, added: Mapping[str, str], removed: Sequence[str] = ()) -> PluginDetails:
        """Add labels or replace their values, and remove others by key."""
        body = LabelsRequest(dict(added), list(removed))
        return self._send(PluginDetails, "PUT", f"{_own(name)}/labels", body=body)

    def logs(self, name: str, *, tail: int | None = None, since: str = "", follow: bool = False) -> Iterator[LogLine]:
        """Its output, oldest first."""
        query = {"tail": "all" if tail is None else str(tail), "since": since, "follow": "1" if follow else ""}
        yield from self._lines(LogLine, f"{_own(name)}/logs", query)

    def host_path(self, name: str, inside: str) -> str:
        """The host's path of a path in it."""
        return self._get(HostPath, f"{_own(name)}/path", {"path": inside}).path

    def stats(self, name: str) -> PluginStats:
        """The resource usage of one that runs."""
        return self._get(PluginStats, f"{_own(name)}/stats")

    def stats_of_all(self) -> list[PluginStats]:
        """The resource usage of each one that runs."""
        return self._get(list[PluginStats], f"{OWN}/stats")

    def call(self, name: str, method: str, body: bytes = b"", timeout: float = 0.0) -> tuple[int, bytes]:
        """Call a method of it; the status and the body of its answer. ``timeout`` in seconds, 0 for the default."""
        query = {"method": method, "timeout": f"{timeout:g}"}
        with self._open("POST", f"{_own(name)}/call", query, body) as answer:
            return int(answer.headers.get("X-Plugin-Status", "200")), answer.read()


def _own(name: str) -> str:
    return f"{OWN}/plugins/{quoted(name)}"


def _force(force: bool) -> dict[str, str]:
    return {"force": "1"} if force else {}
