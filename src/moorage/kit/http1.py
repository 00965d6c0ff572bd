"""HTTP/1.1 as far as plugins need it, without any socket: bytes in, requests out.

Not ``http.server``: that imports the TLS and mail libraries, which would be half of an idle plugin's memory. What is
accepted: any method, Content-Length or chunked bodies or none, ``Expect: 100-continue``, any Content-Type or none.
"""

from dataclasses import dataclass

__all__ = ("HEAD_BYTES", "HttpError", "HttpRequest", "RequestParser", "chunk", "response", "stream_head")

HEAD_BYTES = 65536
"""Of the request line and the headers."""

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"
_REASONS = {
    200: "OK",
    400: "Bad HttpRequest",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    431: "HttpRequest Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class HttpError(Exception):
    """Bytes that are no request that can be answered; the connection is closed after an answer with ``status``."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class HttpRequest:
    """One request."""

    method: str
    path: str
    body: bytes
    is_last: bool
    """Whether the caller closes the connection after it."""


class RequestParser:
    """The requests of one connection."""

    def __init__(self, body_bytes: int) -> None:
        """``body_bytes``: a larger body is refused."""
        self._limit = body_bytes
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str], bool] | None = None
        self._chunks = bytearray()
        self.needs_continue = False
        """Whether the caller waits for ``100 Continue`` before it sends the body."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a next request has been received."""
        return not self._buffer and self._head is None

    def feed(self, data: bytes) -> HttpRequest | None:
        """Take bytes, which may be none; the next request if it is whole now.

        Raises:
            HttpError: it is not HTTP, or too large
        """
        self._buffer += data
        if self._head is None and not self._read_head():
            return None
        assert self._head is not None
        method, path, headers, is_last = self._head
        body = self._read_chunked() if "transfer-encoding" in headers else self._read_length(headers)
        if body is None:
            return None
        self._head, self.needs_continue = None, False
        return HttpRequest(method, path, body, is_last)

    def _read_head(self) -> bool:
        while self._buffer[:2] == b"\r\n":
            del self._buffer[:2]  # some callers send an empty line after a body
        end = self._buffer.find(b"\r\n\r\n")
        if end > HEAD_BYTES or (end < 0 and len(self._buffer) > HEAD_BYTES):
            raise HttpError(431, f"the headers have more than {HEAD_BYTES} bytes")
        if end < 0:
            return False
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise HttpError(400, "the request is not HTTP/1.1")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or name != name.strip():
                raise HttpError(400, f"a header is malformed: {line!r}")
            headers[name.lower()] = value.strip()
        connection = headers.get("connection", "").lower()
        is_last = "close" in connection or (words[2] == "HTTP/1.0" and "keep-alive" not in connection)
        self._head = words[0], words[1].partition("?")[0], headers, is_last
        self.needs_continue = headers.get("expect", "").lower() == "100-continue" and not self._buffer
        return True

    def _read_length(self, headers: dict[str, str]) -> bytes | None:
        text = headers.get("content-length", "0")
        if not (text.isascii() and text.isdecimal()):
            raise HttpError(400, f"Content-Length is not a number: {text!r}")
        return self._take(self._checked(int(text)))

    def _read_chunked(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n")) >= 0:
            text = self._buffer[:end].partition(b";")[0].strip()
            try:
                size = int(text, 16)
            except ValueError:
                raise HttpError(400, "a chunk has no size") from None
            self._checked(len(self._chunks) + size)
            if size == 0:
                return self._end_of_chunks(end)
            if len(self._buffer) < end + 2 + size + 2:
                return None
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
        if len(self._buffer) > HEAD_BYTES:
            raise HttpError(400, "a chunk has no size")
        return None

    def _end_of_chunks(self, end: int) -> bytes | None:
        """The body, once the trailers, which are ignored, are complete."""
        last = end if self._buffer[end : end + 4] == b"\r\n\r\n" else self._buffer.find(b"\r\n\r\n", end)
        if last < 0:
            return None
        del self._buffer[: last + 4]
        body = bytes(self._chunks)
        self._chunks.clear()
        return body

    def _take(self, size: int) -> bytes | None:
        if len(self._buffer) < size:
            return None
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    def _checked(self, size: int) -> int:
        if not 0 <= size <= self._limit:
            raise HttpError(413, f"the body has more than {self._limit} bytes")
        return size


def _head(status: int, headers: str) -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Type: {CONTENT_TYPE}\r\n{headers}\r\n".encode()
    )


def response(status: int, body: bytes, *, is_last: bool) -> bytes:
    """A whole response; with ``is_last`` the connection is closed after it."""
    close = "Connection: close\r\n" if is_last else ""
    return _head(status, f"Content-Length: {len(body)}\r\n{close}") + body


def stream_head() -> bytes:
    """The head of a response whose body is sent in chunks; the connection is closed after it."""
    return _head(200, "Transfer-Encoding: chunked\r\nConnection: close\r\n")


def chunk(data: bytes) -> bytes:
    """One chunk; an empty one is the last."""
    return b"%x\r\n%b\r\n" % (len(data), data)
