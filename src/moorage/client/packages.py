"""Calls for packages: install, upgrade and push, and plugins in archives."""

import http.client
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from moorage.api.schema.packages import (
    ApplyRequest,
    LoadedPlugin,
    PrivilegeReview,
    ProgressLine,
    SaveRequest,
    TermsRequest,
)
from moorage.api.schema.plugins import PluginPrivilege
from moorage.client.answers import decode_answer
from moorage.client.failures import error_of
from moorage.client.transport import OWN, EngineTransport, encode_body, quoted

__all__ = ("PackageClient", "Progress")

_TAR = {"Content-Type": "application/x-tar"}
_CHUNK = 256 * 1024
_NO_TERMS = TermsRequest()


class Progress:
    """An operation that continues while its lines are read.

    ``answer`` is the response, a JSON object a line.
    """

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.name: str = answer.headers.get("Docker-Plugin-Name", "")
        """The plugin that it creates or changes."""
        self._answer = answer

    def lines(self) -> Iterator[ProgressLine]:
        """The steps; the last line may have ``aux``, the result.

        Raises:
            errors.MoorageError: the operation failed
        """
        for raw in self._answer:
            line = decode_answer(raw, ProgressLine)
            if line.error:
                error = error_of(line.error_detail.code if line.error_detail else 500, line.error)
                error.is_rolled_back = bool(line.error_detail and line.error_detail.rolled_back)
                raise error
            yield line


class PackageClient(EngineTransport):
    """Calls for packages. ``auth`` is the header X-Registry-Auth: credentials for the registry, as base64 of JSON."""

    def privileges(self, remote: str, auth: str = "") -> list[PluginPrivilege]:
        """What the plugin with this reference requests with its default settings."""
        return self._get(list[PluginPrivilege], "/plugins/privileges", {"remote": remote}, auth)

    def request_privileges(
        self, remote: str = "", name: str = "", terms: TermsRequest = _NO_TERMS, auth: str = ""
    ) -> PrivilegeReview:
        """What a plugin would request with the settings and secrets of these terms.

        By reference, by name of an installed one, or by both for an upgrade.
        """
        query = {key: value for key, value in (("remote", remote), ("name", name)) if value}
        return self._send(PrivilegeReview, "POST", f"{OWN}/privileges", query, terms, auth)

    def pull(
        self, remote: str, name: str, terms: TermsRequest, auth: str = "", *, once: bool = False
    ) -> AbstractContextManager[Progress]:
        """Install a plugin under a name ("": its own). ``once``: succeed if it is installed with these settings."""
        path = f"{OWN}/{'ensure' if once else 'pull'}"
        return self._progress(path, {"remote": remote, "name": name}, terms, auth)

    def upgrade(
        self,
        name: str,
        remote: str,
        terms: TermsRequest,
        auth: str = "",
        *,
        restart: bool = False,
        force: bool = False,
        wait: float = 0,
    ) -> AbstractContextManager[Progress]:
        """Change the version of a plugin; ``restart`` also an enabled one, ``force`` also one in use.

        ``wait``: seconds until it must be healthy, or is rolled back; 0 to go by ready alone.
        """
        flags = {key: "1" for key, is_on in (("restart", restart), ("force", force)) if is_on}
        if wait:
            flags["wait"] = f"{wait:g}"
        return self._progress(f"{OWN}/plugins/{quoted(name)}/upgrade", {"remote": remote, **flags}, terms, auth)

    def fetch(self, remote: str, auth: str = "") -> AbstractContextManager[Progress]:
        """Fetch a package for a plugin that is applied within an hour."""
        return self._progress(f"{OWN}/fetch", {"remote": remote}, None, auth)

    def apply(
        self, name: str, remote: str, state: ApplyRequest, auth: str = "", *, wait: float = 0
    ) -> AbstractContextManager[Progress]:
        """Install or change a plugin; without ``remote`` its version does not change. What fails is rolled back:
        ``is_rolled_back`` of the error says that something was. ``wait``: seconds until it must be healthy.
        """
        query = {**({"remote": remote} if remote else {}), **({"wait": f"{wait:g}"} if wait else {})}
        return self._progress(f"{OWN}/plugins/{quoted(name)}/apply", query, state, auth)

    def push(self, name: str, to: str = "", auth: str = "") -> AbstractContextManager[Progress]:
        """Push it to a registry, as ``to`` or its name."""
        return self._progress(f"/plugins/{quoted(name)}/push", {"to": to} if to else {}, None, auth)

    def save(self, names: Sequence[str]) -> Iterator[bytes]:
        """An OCI archive of these plugins, in chunks."""
        raw, headers = encode_body(SaveRequest(list(names)))
        with self._open("POST", f"{OWN}/save", {}, raw, headers) as answer:
            while chunk := answer.read(_CHUNK):
                yield chunk

    def load(self, archive: Iterator[bytes], name: str = "") -> list[LoadedPlugin]:
        """Load the plugins of an OCI archive. ``name`` is for an archive with one plugin."""
        with self._open("POST", f"{OWN}/load", {"name": name} if name else {}, archive, _TAR) as answer:
            return decode_answer(answer.read(), list[LoadedPlugin])

    def create_from(
        self, name: str, package: Iterator[bytes], remote: str = "", auth: str = ""
    ) -> AbstractContextManager[Progress]:
        """Create a plugin from an image: a tar stream of config.json and, without ``remote``, of an OCI layout."""
        query = {"name": name, **({"remote": remote} if remote else {})}
        return self._progress(f"{OWN}/create", query, package, auth)

    @contextmanager
    def _progress(
        self, path: str, query: Mapping[str, str], body: TermsRequest | Iterator[bytes] | None, auth: str
    ) -> Iterator[Progress]:
        raw: bytes | Iterator[bytes] | None
        if isinstance(body, TermsRequest | None):
            raw, headers = encode_body(body, auth)
        else:
            raw, headers = body, {**encode_body(None, auth)[1], **_TAR}
        with self._open("POST", path, query, raw, headers) as answer:
            yield Progress(answer)
