"""Targets: what plugins and engines answer, what plugins write, and what lies in the directories that they or others write to."""

import os
import selectors
import shutil
import socket
import threading
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

from fuzz.environment import loop, scratch
from fuzz.harness import CrashError, Target
from fuzz.mutation import mutate_bytes, mutate_json, mutate_lines
from moorage import errors
from moorage.api.schema.base import to_document
from moorage.api.schema.output import LogLine
from moorage.api.schema.packages import LoadedPlugin, ProgressLine
from moorage.api.schema.plugins import PluginDetails
from moorage.api.schema.system import EventMessage, SystemInfo, SystemVersion
from moorage.client.answers import decode_answer
from moorage.host.sockets import PluginSocket
from moorage.logs.keeper import Keeper
from moorage.logs.keeper_client import KeeperClient, KeeperOutput
from moorage.logs.keeper_protocol import GREETING, QUIT, pack
from moorage.logs.reader import PluginLog
from moorage.logs.writer import LineStream, LogWriter
from moorage.runs.entrypoint import explain_start_failure
from moorage.runs.http_call import call
from moorage.runs.readiness import Activation, activate
from moorage.timeouts import DEFAULT
from support.limits import limit

# ---------------------------------------------------------------------------------------------- a plugin's API


class Answering:
    """A plugin that answers whatever it is given to each request."""

    def __init__(self, path: Path) -> None:
        self.path, self.answer = path, b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                client.settimeout(limit(5))
                try:
                    client.recv(65536)
                    client.sendall(self.answer)
                except OSError:
                    pass  # the engine has had enough


@cache
def _plugin() -> Answering:
    return Answering(scratch() / "plugin.sock")


def read_answer(data: bytes) -> None:
    """What a plugin answers to a call, and to the question of what it implements."""
    _plugin().answer = data
    plugin = PluginSocket(scratch(), "plugin.sock")
    try:
        answer = loop().run_until_complete(call(plugin, "VolumeDriver.List", b"{}", 2.0, most_bytes=100_000))
        if len(answer.body) > 100_000:
            raise CrashError("an answer is longer than its limit")
    except (errors.Invalid, errors.InvalidResponse, errors.Unavailable) as error:
        str(error).encode(errors="surrogateescape")
    found = loop().run_until_complete(activate(plugin, 2.0))
    if not isinstance(found, Activation):
        raise CrashError("no activation")


def read_activation(data: bytes) -> None:
    """The body of an answer to Plugin.Activate."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
    _plugin().answer = head + data
    loop().run_until_complete(activate(PluginSocket(scratch(), "plugin.sock"), 2.0))


# --------------------------------------------------------------------------------------------- an engine's API


_KINDS: tuple[Any, ...] = (
    list[PluginDetails],
    SystemInfo,
    SystemVersion,
    ProgressLine,
    EventMessage,
    LogLine,
    list[LoadedPlugin],
)


def read_engine_answer(data: bytes) -> None:
    """The body of an answer of whatever server listens at the engine's socket."""
    for kind in _KINDS:
        try:
            value = decode_answer(data, kind)
        except errors.Unavailable as error:
            if not str(error).startswith("cannot understand the answer of the engine: "):
                raise CrashError("the error does not say that the answer is not an engine's") from error
            continue
        to_document(value)


# ------------------------------------------------------------------------------------------------ an entrypoint


def read_program(data: bytes) -> None:
    """An entrypoint that did not run, explained."""
    root = scratch() / "root"
    root.mkdir(exist_ok=True)
    program = root / "p"
    program.write_bytes(data)
    program.chmod(0o755)
    if not explain_start_failure(
        {"process": {"args": ["/p"], "cwd": "/", "env": ["PATH=/"]}, "mounts": []}, str(root)
    ).isprintable():
        raise CrashError("an explanation has control characters")


def _mutate_elf(data: bytes, random: Random) -> bytes:
    """Most changes go into the headers; the file may get very long without having bytes."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    head = bytearray(data[:900])
    size = random.choice((1, 2, 4, 8))
    at = random.randrange(4, max(5, len(head) - size))
    head[at : at + size] = random.choice((0, 1, 2, 2**15, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)).to_bytes(
        8, "little"
    )[:size]
    return bytes(head) + data[900:]


def _small_elf() -> bytes:
    return Path(os.path.realpath("/bin/true")).read_bytes()[:8192]


# -------------------------------------------------------------------------------------------------- log files


def read_logs(data: bytes) -> None:
    """Files of a log: its newest, an older one and its counts, however they came to be so."""
    directory = scratch() / "log"
    directory.mkdir(exist_ok=True)
    newest, _, rest = data.partition(b"\n===\n")
    older, _, counts = rest.partition(b"\n===\n")
    for name, content in (("current", newest), ("1", older), ("counts", counts)):
        (directory / name).write_bytes(content)
    log = PluginLog(directory)
    log.totals()
    for count in (0, 1, 3, 10**9):
        if len(log.last_lines(count)) > count:
            raise CrashError("more lines than were asked for")

    async def read() -> list[str]:
        async with log.read(tail=5) as lines:
            return [line.text async for line in lines]

    for text in loop().run_until_complete(read()):
        text.encode()


def write_logs(data: bytes) -> None:
    """Output of a plugin, written in pieces and read back: as many bytes come out, and files keep their bounds."""
    directory = scratch() / "written"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    writer = LogWriter(str(directory), most_bytes=30_000, files=3)
    streams = [LineStream(writer, "stdout"), LineStream(writer, "stderr")]
    for index, piece in enumerate(data.split(b"\xff\xfe")):
        streams[index % 2].take(piece)
    for stream in streams:
        stream.flush()
        stream.end()
    writer.close()
    taken = sum(PluginLog(directory).totals().bytes.values())
    if taken != len(data) - 2 * data.count(b"\xff\xfe"):
        raise CrashError(f"{taken} bytes are counted of {len(data)}")
    largest = max(map(len, data.split(b"\xff\xfe")))
    total = sum(each.stat().st_size for each in directory.iterdir())
    if total > 2 * (30_000 + 40 * (data.count(b"\n") + 2) + 3 * largest):
        raise CrashError(f"the log has {total} bytes")
    PluginLog(directory).last_lines(10**6)


# ------------------------------------------------------------------------------------------ the keeper's wire


class Stepping(Keeper):
    """A keeper that does one thing after another, in this process."""

    def step(self) -> None:
        """Do all that is due."""
        while ready := self._selector.select(0):
            for key, _ in ready:
                assert isinstance(key, selectors.SelectorKey)
                key.data()


def talk_to_keeper(data: bytes) -> None:
    """Packets to a keeper, each with as many descriptors as its first byte says."""
    path = scratch() / "k.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    keeper = Stepping(listener)
    before = set(os.listdir("/proc/self/fd"))
    pipe = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(path))
            keeper.step()
            for packet in data.split(b"\n")[:10]:
                count = packet[0] % 5 if packet else 0
                streams = [pipe[0], 0, pipe[0], pipe[1]][:count] if count != 2 else [pipe[0], pipe[0]]
                try:
                    socket.send_fds(client, [packet[1:].replace(b"|", b"\0")[:60_000]], streams)
                except OSError:
                    break  # it has hung up
                keeper.step()
    finally:
        for end in pipe:
            os.close(end)
        keeper.step()
        keeper.close()
    if left := set(os.listdir("/proc/self/fd")) - before:
        raise CrashError(f"descriptors are left: {left}")


def hear_keeper(data: bytes) -> None:
    """Packets from a keeper."""
    keeper = KeeperClient(scratch(), DEFAULT)
    taken_log = KeeperOutput("k", PluginLog(scratch() / "log"), _no_streams())
    keeper._outputs["k"] = taken_log
    for packet in data.split(b"\n"):
        if packet:
            keeper._receive(packet.replace(b"|", b"\0"))


def _no_streams() -> Any:
    return None


_OK = b"HTTP/1.1 200 OK\r\n"
_ANSWERS = (
    _OK + b'Content-Type: application/json\r\nContent-Length: 30\r\n\r\n{"Implements":["VolumeDriver"]}',
    _OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"\r\n{}",
    _OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    b"HTTP/1.1 302 Found\r\nLocation: http://localhost/x\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n",
)
_HTTP_WORDS = (
    b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"Content-Encoding: deflate\r\n", b"Content-Encoding: br\r\n",
    b"Location: ", b"Set-Cookie: ", b"\r\n\r\n", b"HTTP/1.1 ", b"HTTP/9.9 ", b"ffffffffffffffff\r\n", b"Content-Type: ;;", b"\0",
    b"Content-Type: text/html; charset=x\r\n", b" 204 ", b" 101 ", b" 999 ", b"Connection: upgrade\r\nUpgrade: x\r\n",
)  # fmt: skip
_LINE = b"2026-01-01T00:00:00.000001+00:00 stdout hello\n"
_LOG = (
    _LINE * 3 + b"\n===\n" + _LINE + b"\n===\n" + b"\1\0\0\0\0\0\0\0" * 3,
    b"2026-01-01T00:00:00.000001+00:00 stdout+ half\n2026-01-01T00:00:00.000001+00:00 stderr \x1b[31mred\xff\r\n",
    b"x" * 70_000 + b"\n" + _LINE,
)
_MESSAGES = (
    b"\2" + pack("A", "k", "/dev/shm/fuzz-none", 1000, 3).replace(b"\0", b"|"),
    b"\1"
    + pack("A", "k", "/x", 1, 1).replace(b"\0", b"|")
    + b"\n\0Fk\n\2"
    + pack("A", "l", "/x", 1, 1).replace(b"\0", b"|"),
    b"\0" + QUIT,
    b"\0" + GREETING,
)

_call_mutate: Callable[[bytes, Random], bytes] = partial(mutate_bytes, words=_HTTP_WORDS)


def _mutate_answer(data: bytes, random: Random) -> bytes:
    return (_call_mutate if random.random() < 0.6 else mutate_lines)(data, random)


TARGETS = (
    Target("answer", "HTTP that a plugin answers", read_answer, _ANSWERS, _mutate_answer, executions=250),
    Target(
        "activation", "a plugin's answer to Plugin.Activate", read_activation,
        (b'{"Implements":["VolumeDriver","x"]}', b"[]", b"null"), partial(mutate_json, keys=("Implements", "implements")),
        executions=250,
    ),
    Target(
        "engine-answer", "an answer of the server at the engine's socket", read_engine_answer,
        (b'[{"Id":"1","Name":"p","Enabled":true,"Config":{},"Settings":{},"Moorage":{"State":"ready"}}]', b'{"status":"x","id":"y"}',
         b'{"at":"2026-01-01T00:00:00Z","stream":"stdout","text":"x"}', b'{"errorDetail":{"code":500,"message":"m"},"error":"m"}'),
        partial(mutate_json, keys=("Moorage", "State", "aux", "progressDetail", "Actor")), executions=500,
    ),
    Target("program", "an entrypoint that is explained", read_program, (_small_elf(), b"#!/bin/sh -x\n", b"#! /p\n"), _mutate_elf, executions=600),
    Target("log-files", "files of a log", read_logs, _LOG, mutate_lines, executions=500),
    Target(
        "log-writer", "output of a plugin", write_logs,
        (b"hello\nworld\n\xff\xfeerror\n\xff\xfemore", b"\xc3\xa9" * 40_000 + b"\n", b"a\n" * 5000), executions=250,
    ),
    Target("keeper", "packets to the log keeper", talk_to_keeper, _MESSAGES, mutate_bytes, executions=700),
    Target("keeper-answers", "packets from the log keeper", hear_keeper, (b"ak", b"rk|no\ndk", b"fk"), mutate_bytes),
)  # fmt: skip
