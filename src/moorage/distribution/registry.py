"""One repository of a registry: its manifests and blobs, read and written. Knows no plugins and stores nothing.

Source: the distribution project's HTTP API V2 and the OCI distribution specification 1.1, with Docker's media types.
"""

import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Literal, TypeVar
from urllib.parse import quote

import aiohttp
from msgspec.structs import replace
from yarl import URL

from moorage import errors
from moorage.distribution import _http
from moorage.distribution._check import (
    MANIFEST_LIMIT,
    MANIFEST_TYPES,
    Manifest,
    check_digest,
    check_manifest,
    check_target,
    new_hash,
)
from moorage.distribution._conversation import Ask, Conversation, Passing, Patience
from moorage.distribution._http import Fault, Meter, Transport
from moorage.distribution._push import push_stream
from moorage.distribution.auth import ANONYMOUS, CredentialsFor, Scope
from moorage.distribution.hosts import Hosts, Options
from moorage.plugins import Reference
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("MANIFEST_LIMIT", "MANIFEST_TYPES", "Manifest", "Registry")

log = logging.getLogger(__name__)

_GAIN = 1 << 20  # bytes after which a read counts as one that comes on, and gets all its tries again

Result = TypeVar("Result")


class Registry:
    """A repository for the length of one operation, a pull or a push; used as an async context manager.

    Which URL is spoken to is decided by the first request and stays. A pull from docker.io goes to the mirrors first; a
    mirror that fails in whatever way is left for good, and the same is asked of the next. Requests are tried again
    where that may help (see ``TRIES``). Calls may be made side by side. Cancelling is safe anywhere.

    All methods raise: Unauthorized, Denied, NotFound as the registry says; Unavailable for faults of the network, for
    429 and 5xx; Invalid where the registry refuses what is sent, or sends something else than it should; each with
    what was asked, the host, and the registry's own words.
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
        self._hosts = Hosts(options or Options())
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
            credentials = await self._credentials(endpoint.name) if self._credentials else ANONYMOUS
            self._conversations.append(
                Conversation(endpoint, self._repository.path, transport, self._hosts, credentials, self._timeouts)
            )
        await self._undo.enter_async_context(transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._undo.aclose()

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
        ask = self._ask(
            "GET",
            f"manifests/{check_target(target)}",
            f"read the manifest {target}",
            headers={"Accept": ", ".join(MANIFEST_TYPES)},
            is_addressed=":" in target,
        )
        return await self._of_each(lambda conversation: self._read_manifest(conversation, ask, target))

    async def _read_manifest(self, conversation: Conversation, ask: Ask, target: str) -> Manifest:
        patience = Patience(self._timeouts)
        while True:
            response = await conversation.ask(ask)
            try:
                data = await _http.read_bounded(response, MANIFEST_LIMIT, self._timeouts.registry_stall)
                if data is None:
                    raise errors.Invalid(f"cannot {ask.what}: it has more than {MANIFEST_LIMIT} bytes")
                return check_manifest(ask, data, response, target)
            except Fault as fault:
                await patience.after(conversation.broken(ask, fault))
            finally:
                response.close()

    async def push_manifest(self, target: str, data: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest; what it names must be there. Returns its digest."""
        ask = self._ask(
            "PUT",
            f"manifests/{check_target(target)}",
            f"push the manifest {target}",
            headers={"Content-Type": media_type},
            body=data,
            expected=(200, 201, 202),
        )
        response = await self._conversation.ask(ask)
        response.close()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        announced = response.headers.get("Docker-Content-Digest", digest)
        if announced.startswith("sha256:") and announced != digest:
            raise errors.Invalid(f"cannot {ask.what}: the registry has stored {announced} instead of {digest}")
        return digest

    # blobs

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has this blob."""
        ask = self._ask("HEAD", f"blobs/{check_digest(digest)}", f"look for {digest}", is_addressed=True)
        try:
            response = await self._of_each(lambda conversation: conversation.ask(ask))
        except errors.NotFound:
            return False
        response.close()
        return True

    async def read_blob(self, digest: str, size_bytes: int, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from ``offset`` on, exactly up to ``size_bytes``; to be closed where it is left early.

        A connection that breaks is resumed where it broke. Read from 0, the digest is checked when the last byte has
        been yielded, so nothing is to be believed before the end; from elsewhere whoever puts it together checks it.

        Raises: Invalid for a wrong digest, or another size than promised; not more than that is yielded. Unavailable
        for a wrong digest where a mirror had a part in it: read again, it comes without that mirror.
        """
        at = offset
        hasher = new_hash(digest) if offset == 0 else None
        ask = self._ask(
            "GET", f"blobs/{check_digest(digest)}", f"read {digest}", expected=(200, 206), is_addressed=True
        )
        index = self._first
        while at < size_bytes:
            index = self._first
            try:
                async with aclosing(self._from_one(self._conversations[index], ask, size_bytes, at)) as pieces:
                    async for piece in pieces:
                        at += len(piece)
                        if hasher is not None:
                            hasher.update(piece)
                        yield piece
            except errors.MoorageError as error:
                self._leave(index, error)
        if hasher is not None and hasher.hexdigest() != digest.partition(":")[2]:
            real = f"{hasher.name}:{hasher.hexdigest()}"
            self._leave(index, errors.Invalid(f"cannot {ask.what}: what came has the digest {real}"))
            raise errors.Unavailable(f"cannot {ask.what}: what came from a mirror has the digest {real}")

    async def _from_one(
        self, conversation: Conversation, ask: Ask, size_bytes: int, offset: int
    ) -> AsyncGenerator[bytes, None]:
        patience, at, gained = Patience(self._timeouts), offset, 0
        while at < size_bytes:
            response = await conversation.ask(_with_range(ask, at))
            try:
                skip = _start(ask, response, at, size_bytes)
                meter = Meter(response, self._timeouts.registry_stall)
                while piece := await meter.piece():
                    skipped, skip = min(skip, len(piece)), skip - min(skip, len(piece))
                    piece = piece[skipped:]
                    if at + len(piece) > size_bytes:
                        raise errors.Invalid(f"cannot {ask.what}: more than the promised {size_bytes} bytes come")
                    at, gained = at + len(piece), gained + len(piece)
                    if piece:
                        yield piece
                if at < size_bytes:
                    raise Fault(f"it ends after {at} of {size_bytes} bytes", _http.Why.BROKEN)
            except Fault as fault:
                if gained >= _GAIN:
                    gained = 0
                    patience.refill()
                await patience.after(conversation.broken(ask, fault))
            finally:
                response.close()

    async def mount_blob(self, digest: str, from_path: str) -> bool:
        """Let the repository have a blob of another one of this registry; False where that is not to be.

        ``from_path`` is a repository without its host. A registry that does not know the blob there, or does not let
        us read it, says no in one way or another, and the blob is to be pushed then.
        """
        ask = self._ask(
            "POST",
            "blobs/uploads/",
            f"mount {digest} from {from_path}",
            query={"mount": check_digest(digest), "from": from_path},
            expected=(201, 202),
            body=b"",
            scopes=frozenset((self._scope, Scope(from_path, "pull"))),
        )
        conversation = self._conversation
        try:
            response = await conversation.ask(ask)
        except (errors.Unauthorized, errors.Denied, errors.NotFound, errors.Unsupported, errors.Invalid) as error:
            log.debug("%s", error)
            return False
        response.close()
        if response.status == 202:
            await self._abandon(conversation, response)
        return response.status == 201

    async def _abandon(self, conversation: Conversation, begun: aiohttp.ClientResponse) -> None:
        """End an upload that nobody wants; a registry that cannot do so forgets it in time."""
        what = "end an upload"
        try:
            url = conversation.location(begun, what)
            (await conversation.attempt(self._ask("DELETE", url, what, expected=(200, 202, 204, 404, 405)))).close()
        except (errors.MoorageError, Passing) as error:
            log.debug("%s", error)

    async def push_blob(self, digest: str, size_bytes: int, chunks: Callable[[], AsyncGenerator[bytes, None]]) -> None:
        """Store a blob. ``chunks`` is asked for all of its bytes once for each try, and closed.

        Raises: Invalid where it has not ``size_bytes`` many, or the registry finds another digest; what it raises.
        """
        what = f"push {check_digest(digest)}"
        begin = self._ask("POST", "blobs/uploads/", what, expected=(202,), body=b"")
        patience, conversation = Patience(self._timeouts), self._conversation
        while True:
            response = await conversation.ask(begin)
            response.close()
            put = self._ask(
                "PUT",
                _with_digest(conversation.location(response, what), digest),
                what,
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)},
                expected=(201, 204),
            )
            try:
                return await push_stream(conversation, put, size_bytes, chunks, self._timeouts)
            except Passing as passing:
                await patience.after(passing)

    # which server

    @property
    def _conversation(self) -> Conversation:
        """With the registry itself, which is all that a push knows."""
        return self._conversations[-1]

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

    def _ask(
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
        is_addressed: bool = False,
    ) -> Ask:
        return Ask(
            method,
            url,
            f"{what} in {self._repository.familiar_name}",
            scopes or frozenset((self._scope,)),
            expected,
            headers or {},
            query or {},
            body,
            is_addressed,
        )


def _with_digest(url: URL, digest: str) -> URL:
    """The place of an upload with the digest added, and nothing else of it touched: it may be signed."""
    return URL(f"{url}{'&' if url.raw_query_string else '?'}digest={quote(digest, safe='')}", encoded=True)


def _with_range(ask: Ask, offset: int) -> Ask:
    return replace(ask, headers={"Range": f"bytes={offset}-"}) if offset else ask


def _start(ask: Ask, response: aiohttp.ClientResponse, at: int, size_bytes: int) -> int:
    """How many bytes of a body are to be skipped, after its headers were compared with what was asked for.

    Raises: Invalid where they tell of another size.
    """
    length = response.content_length
    if response.status == 200:
        begin, end = 0, length
    else:
        shape = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if shape is None or int(shape[1]) > at:
            raise errors.Invalid(f"cannot {ask.what}: bytes from {at} on were asked for, and others come")
        begin = int(shape[1])
        end = int(shape[3]) if shape[3] != "*" else None
    if end is not None and end != size_bytes:
        raise errors.Invalid(f"cannot {ask.what}: it has {end} bytes where {size_bytes} were promised")
    return at - begin
