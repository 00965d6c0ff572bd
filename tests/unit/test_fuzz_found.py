"""What fuzzing has found, each as a case of its own: an input that crashed or hung its reader before."""

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from click.testing import CliRunner

from fuzz.mutation import with_checksum
from moorage import errors
from moorage._lib.json_document import decode_json
from moorage.api.exec import _parse
from moorage.cli.cmd_call import command as call_command
from moorage.engine.store import _decode
from moorage.engine.values import EngineIdentity
from moorage.host.sockets import PluginSocket
from moorage.packages.create import repack_package
from moorage.packages.tar import read_entries
from moorage.runs.http_call import PluginResponse, call

DEEP = b"[" * 100_000


def pax(*records: bytes, size: bytes = b"") -> bytes:
    """A package with these pax records before a file of its root, whose header may claim another size."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        config = tarfile.TarInfo("config.json")
        config.size = 2
        archive.addfile(config, io.BytesIO(b"{}"))
        body = b"".join(records)
        if body:
            extra = tarfile.TarInfo("pax")
            extra.type, extra.size = tarfile.XHDTYPE, len(body)
            archive.addfile(extra, io.BytesIO(body))
        at = stream.tell()
        archive.addfile(tarfile.TarInfo("rootfs/a"))
    made = bytearray(stream.getvalue())
    if size:
        made[at + 124 : at + 136] = size
        made[at : at + 512] = with_checksum(bytes(made[at : at + 512]))
    return bytes(made)


def record(body: bytes) -> bytes:
    """One pax record."""
    length = len(body) + 3
    return b"%d %b\n" % (len(body) + 2 + len(str(length)), body)


def read_package(data: bytes) -> bytes:
    chunks = iter([data])
    return repack_package(lambda: next(chunks, b""), lambda _: None)


def read_archive(data: bytes) -> None:
    async def read() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield data

        async for _ in read_entries(body()):
            pass

    anyio.run(read)


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x3f" + b"\xff" * 7])
def test_fuzz_a_header_that_claims_exabytes_keeps_no_thread_busy(size: bytes) -> None:
    with pytest.raises(errors.Invalid, match=r"breaks off within an entry|no whole tar"):
        read_package(pax(size=size))


@pytest.mark.parametrize("value", [b"1e400", b"-1e400", b"nan", b"inf"])
def test_fuzz_s13_an_instant_out_of_any_range_is_refused_or_read(value: bytes) -> None:
    with pytest.raises(errors.Invalid, match="cannot read the package"):
        read_package(pax(record(b"mtime=" + value)))


@pytest.mark.parametrize("length", [b"9" * 5000, b"0", b"", b"-1"])
def test_fuzz_a_pax_record_whose_length_is_no_length_is_refused(length: bytes) -> None:
    with pytest.raises(errors.Invalid, match="a pax header in it is damaged"):
        read_archive(pax(length + b" path=x\n"))


def test_fuzz_a_stored_record_that_is_nested_deeply_is_a_damaged_one() -> None:
    with pytest.raises(errors.Invalid, match=r"cannot read /x: .*nested too deeply"):
        _decode(b'{"schema": 1, "a": ' + DEEP, EngineIdentity, Path("/x"))


def test_fuzz_json_of_a_plugin_that_is_nested_deeply_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        decode_json(DEEP)


def test_fuzz_a_command_of_exec_that_is_nested_deeply_is_refused() -> None:
    class Query:
        def query(self, key: str) -> str:
            return DEEP.decode()

    with pytest.raises(errors.Invalid, match="invalid command: it must be a JSON list of texts"):
        _parse(Query(), "command")  # type: ignore[arg-type]  # only its query is read


def test_fuzz_data_of_call_that_is_nested_deeply_is_refused() -> None:
    result = CliRunner().invoke(call_command, ["plugin", "Method", DEEP.decode()])
    assert isinstance(result.exception, errors.Invalid)


# ------------------------------------------------------------------------------------------- answers of plugins


async def answered(path: Path, head: bytes) -> PluginResponse:
    """What a call makes of an answer with this head and the body "hello"."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"Content-Length: 5\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_unix_server(answer, path / "p.sock"):
        return await call(PluginSocket(path, "p.sock"), "A", b"", 20.0)


@pytest.mark.anyio
@pytest.mark.parametrize("location", [b"http://x/", b"http://\x0bx/", b"/A", b"http://["])
async def test_fuzz_a_redirect_of_a_plugin_is_an_answer_and_not_followed(tmp_path: Path, location: bytes) -> None:
    answer = await answered(tmp_path, b"HTTP/1.1 307 Temporary Redirect\r\nLocation: " + location + b"\r\n")
    assert (answer.status, answer.body) == (307, b"hello")


@pytest.mark.anyio
@pytest.mark.parametrize("value", [b"a\x0bb", b"text/\xe9", b"\x1b[2J"])
async def test_fuzz_a_media_type_that_no_header_can_have_is_not_passed_on(tmp_path: Path, value: bytes) -> None:
    try:
        answer = await answered(tmp_path, b"HTTP/1.1 200 OK\r\nContent-Type: " + value + b"\r\n")
    except errors.Unavailable:
        return  # refused whole: how much a parser takes depends on its version
    assert answer.content_type == ""
