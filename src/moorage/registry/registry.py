"""One repository of a registry: reads and writes its manifests and blobs. Knows no plugins and stores nothing.

Source: the distribution project's HTTP API V2 and the OCI distribution specification 1.1, with Docker's media types.
"""

import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Literal, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from moorage import errors
from moorage.oci.digest import check_digest, new_hash
from moorage.oci.limits import MANIFEST_BYTES
from moorage.oci.manifest import RawManifest
from moorage.oci.media_types import MANIFESTS_AND_INDEXES, OCI_INDEX
from moorage.oci.reference import Reference, check_target
from moorage.registry._authorization import Scope
from moorage.registry._body import BodyReader, TimeBudget, check_manifest, read_bounded
from moorage.registry._connections import TransportError, TransportErrorKind
from moorage.registry._retry import OPTIONAL_TRIES, RetryBudget, TransientError, as_transient
from moorage.registry._session import (
    RegistryRequest,
    RegistrySession,
    StreamRedirected,
    check_range,
    first_result,
    read_document,
    request_range,
)
from moorage.registry._transport import REDIRECTS, Transport
from moorage.registry._upload import upload
from moorage.registry.credentials import ANONYMOUS, Credentials, CredentialsFor
from moorage.registry.hosts import Endpoint, Hosts, Options
from moorage.timeouts import DEFAULT, RegistryTimeouts

__all__ = ("Registry",)

log = logging.getLogger(__name__)

_PROGRESS_BYTES = 1 << 20  # bytes after which a read has made progress and all retries are allowed again

Result = TypeVar("Result")


class Registry:
    """A repository during one operation, a pull or a push; used as an async context manager.

    The first request chooses the URL for all. A pull from docker.io tries the mirrors first; a mirror that fails in any
    way is not used again, and the next server gets the same request. Requests are retried if that may help (see
    ``TRIES``). Calls may be concurrent. Cancellation is safe anywhere.

    ``repository`` is any reference to it; ``access`` is requested of it with what ``credentials`` finds by host;
    ``options`` are those of the machine; ``timeouts`` bound the waits.
    All methods raise: Unauthorized, Denied, NotFound as the registry says; Unavailable for faults of the network, for
    429 and 5xx; Invalid if the registry refuses the request; InvalidResponse if it sends what cannot be used. Each
    error has the request, the host, and the registry's message.
    """

    def __init__(
        self,
        repository: Reference,
        access: Literal["pull", "push"] = "pull",
        *,
        credentials: CredentialsFor | None = None,
        options: Options | None = None,
        timeouts: RegistryTimeouts = DEFAULT,
    ) -> None:
        self._repository = repository
        self._access = access
        self._credentials = credentials
        self._timeouts = timeouts
        self._hosts = Hosts(options or Options(), timeouts=timeouts)
        self._scope = Scope(repository.path, "pull" if access == "pull" else "pull,push")
        self._undo = AsyncExitStack()
        self._sessions: list[RegistrySession] = []
        self._first = 0

    async def __aenter__(self) -> "Registry":
        """Raises: Invalid for a mirror that cannot be used; what finding credentials raises."""
        host = self._repository.host
        endpoints = await self._hosts.endpoints(host, is_pull=self._access == "pull")
        transport = Transport(self._hosts, self._timeouts)
        for endpoint in endpoints:
            credentials = await self._credentials_of(endpoint)
            self._sessions.append(
                RegistrySession(endpoint, self._repository.path, transport, self._hosts, credentials, self._timeouts)
            )
        await self._undo.enter_async_context(transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    async def _credentials_of(self, endpoint: Endpoint) -> Credentials:
        """The credentials for an endpoint; none for a mirror whose credentials cannot be read."""
        if self._credentials is None:
            return ANONYMOUS
        try:
            return await self._credentials(endpoint.name)
        except errors.MoorageError as error:
            if not endpoint.is_mirror:
                raise
            log.info("the mirror %s is used without credentials: %s", endpoint.name, error)
            return ANONYMOUS

    # manifests

    async def resolve(self, reference: Reference) -> RawManifest:
        """The manifest of a reference to this repository: by its digest if it has one, else by its tag.

        Raises: InvalidResponse for bytes of another digest than requested or announced, or too many of them.
        Raises: Unsupported for a media type of neither a manifest nor an index.
        """
        if reference.name != self._repository.name:
            raise errors.Invalid(f"cannot read {reference} from the repository {self._repository.name}")
        tagged = reference.with_default_tag()
        return await self.read_manifest(tagged.digest or tagged.tag or "")

    async def read_manifest(self, target: str) -> RawManifest:
        """The manifest with this tag or digest, for example of an entry of an index; see ``resolve``."""
        request = self._manifest_request(target)
        return await self._with_fallback(lambda session: self._read_manifest(session, request, target))

    def _manifest_request(self, target: str) -> RegistryRequest:
        return self._request(
            "GET",
            f"manifests/{check_target(target)}",
            f"read the manifest {target}",
            headers={"Accept": ", ".join(MANIFESTS_AND_INDEXES)},
        )

    async def _read_manifest(self, session: RegistrySession, request: RegistryRequest, target: str) -> RawManifest:
        budget, time_budget = RetryBudget(self._timeouts), TimeBudget(self._timeouts)
        while True:
            response = await session.send(request)
            try:
                data = await read_bounded(response, MANIFEST_BYTES, self._timeouts.registry_stall, time_budget)
                if data is None:
                    raise errors.InvalidResponse(f"cannot {request.action}: it has more than {MANIFEST_BYTES} bytes")
                return check_manifest(request.action, data, response, target)
            except TransportError as error:
                await budget.after(as_transient(session.failure(request, error)))
            finally:
                response.close()

    async def find_manifest(self, target: str) -> RawManifest | None:
        """As ``read_manifest``; None if no server has it. A mirror without it stays in use: it may be optional."""
        request = self._manifest_request(target)
        return await first_result(self._usable, lambda session: self._read_manifest(session, request, target))

    async def read_referrers(self, digest: str, artifact_type: str) -> bytes | None:
        """The first page of the referrers of a manifest with one artifact type: an index in JSON, not checked.

        None if no server has such a list. Raises: InvalidResponse for more than ``MANIFEST_BYTES`` bytes.
        """
        request = self._request(
            "GET",
            f"referrers/{check_digest(digest)}",
            f"list what refers to {digest}",
            headers={"Accept": OCI_INDEX},
            query={"artifactType": artifact_type},
        )
        return await first_result(self._usable, lambda session: read_document(session, request, self._timeouts))

    async def push_manifest(self, target: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest; its blobs must exist. Returns its digest."""
        request = self._request(
            "PUT",
            f"manifests/{check_target(target)}",
            f"push the manifest {target}",
            headers={"Content-Type": media_type},
            body=data,
            expected=(200, 201, 202),
        )
        response = await self._session.send(request)
        response.close()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        announced = response.headers.get("Docker-Content-Digest", digest)
        if announced.startswith("sha256:") and announced != digest:
            raise errors.InvalidResponse(
                f"cannot {request.action}: the registry has stored {announced} instead of {digest}"
            )
        return digest

    # blobs

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has this blob."""
        request = self._request("HEAD", f"blobs/{check_digest(digest)}", f"check for {digest}")
        try:
            response = await self._with_fallback(lambda session: session.send(request, OPTIONAL_TRIES))
        except errors.NotFound:
            return False
        response.close()
        return True

    async def may_omit_blob(self, digest: str) -> bool:
        """Whether the registry is known to have this blob; False if that cannot be found out."""
        check_digest(digest)
        try:
            return await self.has_blob(digest)
        except errors.MoorageError as error:
            log.info("%s; it is uploaded", error)
            return False

    async def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on, exactly up to ``size_bytes``; close an unfinished generator.

        A broken connection is resumed where it broke. If the blob is read from 0, its digest is verified after the last
        byte, so do not trust the content before the end; otherwise the caller verifies the digest.

        Raises: InvalidResponse for a wrong digest or size; never more than ``size_bytes`` are yielded.
        Raises: Unavailable for a wrong digest if a mirror was involved, which is not used for the next read.
        """
        at = offset
        hasher = new_hash(digest) if offset == 0 else None
        request = self._request("GET", f"blobs/{check_digest(digest)}", f"read {digest}", expected=(200, 206))
        index = self._first
        while at < size_bytes:
            index = self._first
            try:
                async with aclosing(self._read_from(self._sessions[index], request, size_bytes, at)) as chunks:
                    async for chunk in chunks:
                        at += len(chunk)
                        if hasher is not None:
                            hasher.update(chunk)
                        yield chunk
            except errors.MoorageError as error:
                self._drop_server(index, error)
        if hasher is not None and hasher.hexdigest() != digest.partition(":")[2]:
            real = f"{hasher.name}:{hasher.hexdigest()}"
            wrong = errors.InvalidResponse(f"cannot {request.action}: the content has the digest {real}")
            self._drop_server(index, wrong)
            raise errors.Unavailable(f"cannot {request.action}: the content from a mirror has the digest {real}")

    async def _read_from(
        self, session: RegistrySession, request: RegistryRequest, size_bytes: int, offset: int
    ) -> AsyncGenerator[bytes, None]:
        budget, at, progress_bytes = RetryBudget(self._timeouts), offset, 0
        time_budget = TimeBudget(self._timeouts, size_bytes - offset)
        while at < size_bytes:
            response = await session.send(request_range(request, at))
            try:
                skip = check_range(request, response, at, size_bytes)
                reader = BodyReader(response, self._timeouts.registry_stall, time_budget)
                while chunk := await reader.chunk():
                    skipped, skip = min(skip, len(chunk)), skip - min(skip, len(chunk))
                    chunk = chunk[skipped:]
                    if at + len(chunk) > size_bytes:
                        raise errors.InvalidResponse(
                            f"cannot {request.action}: more than the promised {size_bytes} bytes come"
                        )
                    at, progress_bytes = at + len(chunk), progress_bytes + len(chunk)
                    if chunk:
                        yield chunk
                if at < size_bytes:
                    raise TransportError(f"it ends after {at} of {size_bytes} bytes", TransportErrorKind.BROKEN)
            except TransportError as error:
                if progress_bytes >= _PROGRESS_BYTES:
                    progress_bytes = 0
                    budget.refill()
                await budget.after(as_transient(session.failure(request, error)))
            finally:
                response.close()

    async def mount_blob(self, digest: str, from_path: str) -> bool:
        """Let the repository have a blob of another one of this registry; False where that does not work.

        ``from_path`` is a repository without its host. A registry that does not know the blob there, does not let us
        read it or does not mount at all says no in one way or another, and the caller uploads the blob then.
        """
        check_digest(digest)
        request = self._request(
            "POST",
            "blobs/uploads/",
            f"mount {digest} from {from_path}",
            query={"mount": digest, "from": from_path},
            expected=(201, 202),
            body=b"",
            scopes=frozenset((self._scope, Scope(from_path, "pull"))),
        )
        session = self._session
        try:
            response = await session.send(request, tries=1)
        except errors.MoorageError as error:
            log.info("%s; it is uploaded", error)
            return False
        response.close()
        if response.status == 202:
            await self._abandon(session, response)
        return response.status == 201

    async def _abandon(self, session: RegistrySession, started: aiohttp.ClientResponse) -> None:
        """Cancel an upload that is not needed; a registry without cancellation expires it."""
        what = "cancel an upload"
        try:
            url = await session.upload_location(started, what)
            (await session.attempt(self._request("DELETE", url, what, expected=(200, 202, 204, 404, 405)))).close()
        except (errors.MoorageError, TransientError) as error:
            log.debug("%s", error)

    async def push_blob(self, digest: str, size_bytes: int, chunks: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        """Store a blob. ``chunks`` is called for each attempt and redirect, yields all bytes, and is closed.

        Raises: Invalid if it does not yield ``size_bytes`` bytes, or the registry computes another digest.
        Raises: what ``chunks`` raises.
        """
        what = f"push {check_digest(digest)}"
        begin = self._request("POST", "blobs/uploads/", what, expected=(202,), body=b"")
        budget, session = RetryBudget(self._timeouts), self._session
        while True:
            response = await session.send(begin)
            response.close()
            url = _with_digest(await session.upload_location(response, begin.action), digest)
            try:
                return await self._upload(session, url, what, size_bytes, chunks)
            except TransientError as transient:
                await budget.after(transient)

    async def _upload(
        self,
        session: RegistrySession,
        url: URL,
        what: str,
        size_bytes: int,
        chunks: Callable[[], AsyncGenerator[bytes, None]],
    ) -> None:
        """Send a blob to the location of its upload, or to where that redirects. Raises: also TransientError."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        for _ in range(REDIRECTS + 1):
            put = self._request("PUT", url, what, headers=headers, expected=(201, 204))
            try:
                return await upload(session, put, size_bytes, chunks, self._timeouts)
            except StreamRedirected as redirected:
                url = redirected.url
        raise errors.Unavailable(f"cannot {what}: {url.host} redirects an upload more than {REDIRECTS} times")

    # which server

    @property
    def _session(self) -> RegistrySession:
        """The session with the registry itself, the only one of a push."""
        return self._sessions[-1]

    @property
    def _usable(self) -> Sequence[RegistrySession]:
        """The sessions with the mirrors that have not failed, then with the registry."""
        return self._sessions[self._first :]

    async def _with_fallback(self, call: Callable[[RegistrySession], Awaitable[Result]]) -> Result:
        """The first result; the mirrors are tried before the registry. Raises: what the registry itself raises."""
        while True:
            index = self._first
            try:
                return await call(self._sessions[index])
            except errors.MoorageError as error:
                self._drop_server(index, error)

    def _drop_server(self, index: int, error: errors.MoorageError) -> None:
        """Continue with the server after this one, which failed. Raises: the failure if this was the last one."""
        if index + 1 == len(self._sessions):
            raise error
        log.info("mirror not used any more: %s", error)
        self._first = max(self._first, index + 1)

    def _request(
        self,
        method: str,
        url: str | URL,
        what: str,
        *,
        expected: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        scopes: frozenset[Scope] | None = None,
    ) -> RegistryRequest:
        return RegistryRequest(
            method,
            url,
            f"{what} in {self._repository.familiar_name}",
            scopes or frozenset((self._scope,)),
            expected,
            headers or {},
            query or {},
            body,
        )


def _with_digest(url: URL, digest: str) -> URL:
    """The URL of an upload with the digest added and otherwise unchanged: it may be signed."""
    return URL(f"{url}{'&' if url.raw_query_string else '?'}digest={quote(digest, safe='')}", encoded=True)
