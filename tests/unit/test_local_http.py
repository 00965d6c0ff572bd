import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from moorage import __version__, errors
from moorage.client.local_http import UnknownServer, quoted, send

pytestmark = pytest.mark.quick

HEAD = f"HTTP/1.1 200 OK\r\nServer: Docker/{__version__} (linux)\r\n"


@contextmanager
def server(path: Path, *pieces: bytes) -> Iterator[str]:
    """A socket that answers one request with these bytes, one write each."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(BrokenPipeError):  # of a reader that has refused what came before
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=answer)
        thread.start()
        yield str(path)
        thread.join()


def chunked(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in (*bodies, b""))


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("Content-Length: 11\r\n\r\n", b"first\nlast\n"),
        ("Transfer-Encoding: chunked\r\n\r\n", chunked(b"fir", b"st\nla", b"st\n")),
    ],
)
def test_i17_a_body_is_read_whole_however_it_arrives(tmp_path: Path, head: str, body: bytes) -> None:
    data = HEAD.encode() + head.encode() + body
    for number, pieces in enumerate(([data], [bytes([byte]) for byte in data])):
        with server(tmp_path / f"s{number}", *pieces) as path:
            assert list(send(path, "GET", "/x").lines()) == [b"first", b"last"]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nServer: Docker/20.10.24 (linux)\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        f"{HEAD}Content-Length: x\r\n\r\n".encode(),
        b"garbage\r\n\r\n",
        b"x" * 20_000,
    ],
)
def test_i17_what_another_server_sends_is_left_to_the_whole_client(tmp_path: Path, data: bytes) -> None:
    with server(tmp_path / "s", data) as path, pytest.raises(UnknownServer):
        send(path, "GET", "/x")


@pytest.mark.parametrize(
    "data",
    [
        f"{HEAD}Content-Length: 5\r\n\r\nabc".encode(),
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nabc".encode(),
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\nno size\r\n".encode(),
        f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\nabXY".encode(),
    ],
)
def test_i17_a_body_that_is_cut_off_is_a_lost_connection(tmp_path: Path, data: bytes) -> None:
    with server(tmp_path / "s", data) as path, pytest.raises(errors.Unavailable, match="lost moorage"):
        send(path, "GET", "/x").read()


def test_i17_a_failure_has_the_kind_and_the_text_of_the_engine(tmp_path: Path) -> None:
    head = HEAD.replace("200 OK", "409 Conflict")
    data = f'{head}Content-Length: 17\r\n\r\n{{"message": "no"}}'.encode()
    with server(tmp_path / "s", data) as path, pytest.raises(errors.Conflict, match=r"^no$"):
        send(path, "POST", "/x").read()


def test_i17_no_socket_is_left_to_the_whole_client(tmp_path: Path) -> None:
    with pytest.raises(UnknownServer):
        send(str(tmp_path / "missing"), "POST", "/x")


def test_i17_names_are_quoted_as_part_of_a_path() -> None:
    assert quoted("a/b:c@ü") == "a%2Fb%3Ac%40%C3%BC"
    with pytest.raises(UnknownServer):
        quoted("\udcff")


def test_i17_many_small_chunks_are_read_whole(tmp_path: Path) -> None:
    lines = [b"%099d" % number for number in range(100_000)]
    data = HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*(line + b"\n" for line in lines))
    with server(tmp_path / "s", data) as path:
        assert list(send(path, "GET", "/x").lines()) == lines
