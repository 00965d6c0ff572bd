"""One repository of a registry: its manifests and blobs, read and written. Knows no plugins and stores nothing.

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
from moorage.distribution._body import Allowance, BodyReader, read_bounded
from moorage.distribution._check import (
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    Manifest,
    check_digest,
    check_manifest,
    check_target,
    new_hash,
)
from moorage.distribution._conversation import Conversation, RegistryRequest, StreamRedirected
from moorage.distribution._errors import TransportError, TransportErrorKind
from moorage.distribution._http import REDIRECTS, Transport
from moorage.distribution._lookup import first_of, read_document
from moorage.distribution._push import push_stream
from moorage.distribution._ranges import bytes_to_skip, request_range
from moorage.distribution._retry import OPTIONAL_TRIES, RetryBudget, TransientError
from moorage.distribution.auth import ANONYMOUS, Credentials, CredentialsFor, Scope
from moorage.distribution.hosts import Endpoint, Hosts, Options
from moorage.plugins import Reference
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("MANIFEST_LIMIT", "MANIFEST_TYPES", "Manifest", "Registry")

log = logging.getLogger(__name__)

_GAIN = 1 << 20  # bytes after which a read counts as one that comes on, and gets all its tries again

Result = TypeVar("Result")


class Registry:
    """A repository for the length of one operation, a pull or a push; used as an async context manager.

    Which URL is spoken to is decided by the first request and stays. A pull from docker.io goes to the mirrors first; a
    mirror that fails in whatever way is not used again, and the next one gets the same request. Requests are tried
    again where that may help (see ``TRIES``). Calls may be made side by side. Cancelling is safe anywhere.

    All methods raise: Unauthorized, Denied, NotFound as the registry says; Unavailable for faults of the network, for
    429 and 5xx; Invalid where the registry refuses what is sent, or sends something else than it should; each with
    what was requested, the host, and the registry's own words.
    """

    def __init__(
        self,
        repository: Reference,
        access: Literal["pull", "push"] = "pull",
        *,
        credentials: CredentialsFor | None = None,
        options: Options | None = None,
        timeouts: Timeouts = DEFAULT,
    ) -> None:
        self._repository = repository
        self._access = access
        self._credentials = credentials
        self._timeouts = timeouts
        self._hosts = Hosts(options or Options(), timeouts=timeouts)
        self._scope = Scope(repository.path, "pull" if access == "pull" else "pull,push")
        self._undo = AsyncExitStack()
        self._conversations: list[Conversation] = []
        self._first = 0

    async def __aenter__(self) -> "Registry":
        """Raises: Invalid for a mirror that cannot be used; what finding credentials raises."""
        host = self._repository.host
        endpoints = await self._hosts.endpoints(host, is_pull=self._access == "pull")
        transport = Transport(self._hosts, self._timeouts)
        for endpoint in endpoints:
            credentials = await self._credentials_of(endpoint)
            self._conversations.append(
                Conversation(endpoint, self._repository.path, transport, self._hosts, credentials, self._timeouts)
            )
        await self._undo.enter_async_context(transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

    async def _credentials_of(self, endpoint: Endpoint) -> Credentials:
        """The credentials for an endpoint; a mirror is requested without, where finding them fails."""
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

    async def resolve(self, reference: Reference) -> Manifest:
        """What a reference to this repository means: by its digest where it has one, else by its tag.

        Raises: Invalid where the bytes have another digest than was asked for or announced, or more than
        ``MANIFEST_LIMIT`` of them; Unsupported for a media type that is none of ``MANIFEST_TYPES``.
        """
        if reference.name != self._repository.name:
            raise errors.Invalid(f"cannot read {reference} from the repository {self._repository.name}")
        wanted = reference.with_default_tag()
        return await self.read_manifest(wanted.digest or wanted.tag or "")

    async def read_manifest(self, target: str) -> Manifest:
        """The manifest with this tag or digest, as ``resolve``: an entry of an index, for one."""
        request = self._manifest_request(target)
        return await self._of_each(lambda conversation: self._read_manifest(conversation, request, target))

    def _manifest_request(self, target: str) -> RegistryRequest:
        return self._request(
            "GET",
            f"manifests/{check_target(target)}",
            f"read the manifest {target}",
            headers={"Accept": ", ".join(MANIFEST_TYPES)},
        )

    async def _read_manifest(self, conversation: Conversation, request: RegistryRequest, target: str) -> Manifest:
        budget, allowance = RetryBudget(self._timeouts), Allowance(self._timeouts)
        while True:
            response = await conversation.send(request)
            try:
                data = await read_bounded(response, MANIFEST_LIMIT, self._timeouts.registry_stall, allowance)
                if data is None:
                    raise errors.Invalid(f"cannot {request.what}: it has more than {MANIFEST_LIMIT} bytes")
                return check_manifest(request, data, response, target)
            except TransportError as error:
                await budget.after(_transient(conversation.failure(request, error)))
            finally:
                response.close()

    async def find_manifest(self, target: str) -> Manifest | None:
        """As ``read_manifest``; None where no server has it. A mirror without it is not left: it may be optional."""
        request = self._manifest_request(target)
        return await first_of(self._in_use, lambda conversation: self._read_manifest(conversation, request, target))

    async def read_referrers(self, digest: str, artifact_type: str) -> bytes | None:
        """The first page of artifacts of one type that refer to a manifest, an index in JSON, not checked.

        None where no server has such a list. Raises: Invalid for more than ``MANIFEST_LIMIT`` bytes.
        """
        request = self._request(
            "GET",
            f"referrers/{check_digest(digest)}",
            f"list what refers to {digest}",
            headers={"Accept": MANIFEST_TYPES[-1]},
            query={"artifactType": artifact_type},
        )
        return await first_of(self._in_use, lambda conversation: read_document(conversation, request, self._timeouts))

    async def push_manifest(self, target: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest; what it names must be there. Returns its digest."""
        request = self._request(
            "PUT",
            f"manifests/{check_target(target)}",
            f"push the manifest {target}",
            headers={"Content-Type": media_type},
            body=data,
            expected=(200, 201, 202),
        )
        response = await self._conversation.send(request)
        response.close()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        announced = response.headers.get("Docker-Content-Digest", digest)
        if announced.startswith("sha256:") and announced != digest:
            raise errors.Invalid(f"cannot {request.what}: the registry has stored {announced} instead of {digest}")
        return digest

    # blobs

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has this blob."""
        request = self._request("HEAD", f"blobs/{check_digest(digest)}", f"look for {digest}")
        try:
            response = await self._of_each(lambda conversation: conversation.send(request, OPTIONAL_TRIES))
        except errors.NotFound:
            return False
        response.close()
        return True

    async def may_omit_blob(self, digest: str) -> bool:
        """Whether the registry says that it has this blob. One that cannot say so, in whatever way, gets the blob."""
        check_digest(digest)
        try:
            return await self.has_blob(digest)
        except errors.MoorageError as error:
            log.info("%s; it is uploaded", error)
            return False

    async def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on, exactly up to ``size_bytes``; to be closed where it is left early.

        A connection that breaks is resumed where it broke. Read from 0, the digest is checked when the last byte has
        been yielded, so nothing is to be believed before the end; from elsewhere whoever puts it together checks it.

        Raises: Invalid for a wrong digest, or another size than promised; not more than that is yielded. Unavailable
        for a wrong digest where a mirror had a part in it: read again, it comes without that mirror.
        """
        at = offset
        hasher = new_hash(digest) if offset == 0 else None
        request = self._request("GET", f"blobs/{check_digest(digest)}", f"read {digest}", expected=(200, 206))
        index = self._first
        while at < size_bytes:
            index = self._first
            try:
                async with aclosing(self._from_one(self._conversations[index], request, size_bytes, at)) as pieces:
                    async for piece in pieces:
                        at += len(piece)
                        if hasher is not None:
                            hasher.update(piece)
                        yield piece
            except errors.MoorageError as error:
                self._leave(index, error)
        if hasher is not None and hasher.hexdigest() != digest.partition(":")[2]:
            real = f"{hasher.name}:{hasher.hexdigest()}"
            self._leave(index, errors.Invalid(f"cannot {request.what}: what came has the digest {real}"))
            raise errors.Unavailable(f"cannot {request.what}: what came from a mirror has the digest {real}")

    async def _from_one(
        self, conversation: Conversation, request: RegistryRequest, size_bytes: int, offset: int
    ) -> AsyncGenerator[bytes, None]:
        budget, at, gained = RetryBudget(self._timeouts), offset, 0
        allowance = Allowance(self._timeouts, size_bytes - offset)
        while at < size_bytes:
            response = await conversation.send(request_range(request, at))
            try:
                skip = bytes_to_skip(request, response, at, size_bytes)
                reader = BodyReader(response, self._timeouts.registry_stall, allowance)
                while piece := await reader.piece():
                    skipped, skip = min(skip, len(piece)), skip - min(skip, len(piece))
                    piece = piece[skipped:]
                    if at + len(piece) > size_bytes:
                        raise errors.Invalid(f"cannot {request.what}: more than the promised {size_bytes} bytes come")
                    at, gained = at + len(piece), gained + len(piece)
                    if piece:
                        yield piece
                if at < size_bytes:
                    raise TransportError(f"it ends after {at} of {size_bytes} bytes", TransportErrorKind.BROKEN)
            except TransportError as error:
                if gained >= _GAIN:
                    gained = 0
                    budget.refill()
                await budget.after(_transient(conversation.failure(request, error)))
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
        conversation = self._conversation
        try:
            response = await conversation.send(request, tries=1)
        except errors.MoorageError as error:
            log.info("%s; it is uploaded", error)
            return False
        response.close()
        if response.status == 202:
            await self._abandon(conversation, response)
        return response.status == 201

    async def _abandon(self, conversation: Conversation, begun: aiohttp.ClientResponse) -> None:
        """Cancel an upload that is not needed; a registry that cannot do so forgets it in time."""
        what = "cancel an upload"
        try:
            url = await conversation.upload_location(begun, what)
            (await conversation.attempt(self._request("DELETE", url, what, expected=(200, 202, 204, 404, 405)))).close()
        except (errors.MoorageError, TransientError) as error:
            log.debug("%s", error)

    async def push_blob(self, digest: str, size_bytes: int, chunks: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        """Store a blob. ``chunks`` is called once for each try and redirect, for all of its bytes, and closed.

        Raises: Invalid where it has not ``size_bytes`` many, or the registry finds another digest; what it raises.
        """
        what = f"push {check_digest(digest)}"
        begin = self._request("POST", "blobs/uploads/", what, expected=(202,), body=b"")
        budget, conversation = RetryBudget(self._timeouts), self._conversation
        while True:
            response = await conversation.send(begin)
            response.close()
            url = _with_digest(await conversation.upload_location(response, begin.what), digest)
            try:
                return await self._upload(conversation, url, what, size_bytes, chunks)
            except TransientError as transient:
                await budget.after(transient)

    async def _upload(
        self,
        conversation: Conversation,
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
                return await push_stream(conversation, put, size_bytes, chunks, self._timeouts)
            except StreamRedirected as redirected:
                url = redirected.url
        raise errors.Unavailable(f"cannot {what}: {url.host} redirects an upload more than {REDIRECTS} times")

    # which server

    @property
    def _conversation(self) -> Conversation:
        """With the registry itself, which is all that a push knows."""
        return self._conversations[-1]

    @property
    def _in_use(self) -> Sequence[Conversation]:
        """With the mirrors that were not left, then with the registry."""
        return self._conversations[self._first :]

    async def _of_each(self, call: Callable[[Conversation], Awaitable[Result]]) -> Result:
        """The first result; the mirrors go before the registry. Raises: what the registry itself does."""
        while True:
            index = self._first
            try:
                return await call(self._conversations[index])
            except errors.MoorageError as error:
                self._leave(index, error)

    def _leave(self, index: int, error: errors.MoorageError) -> None:
        """Go on to the server after this one, which failed. Raises: the failure, where there is none."""
        if index + 1 == len(self._conversations):
            raise error
        log.info("a mirror is left: %s", error)
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
    """The place of an upload with the digest added, and nothing else of it touched: it may be signed."""
    return URL(f"{url}{'&' if url.raw_query_string else '?'}digest={quote(digest, safe='')}", encoded=True)


def _transient(failure: Exception) -> TransientError:
    """The failure where another try may help. Raises: it, where none does."""
    if isinstance(failure, TransientError):
        return failure
    raise failure
