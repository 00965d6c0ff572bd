"""Checks of log drivers: frames through a FIFO, as dockerd sends them, and reading them back."""

import fcntl
import http.client
import json
import os
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moorage.conformance.check import CheckFailed, CheckSkipped, ConformanceCheck, PluginCalls, require
from moorage.conformance.checks.common import common_checks
from moorage.kit.drivers.log_entry import EntryJoiner, FrameDecoder, LogEntry, encode_frame

__all__ = ("LOG_CHECKS",)

_DIRECTORY = "/run/docker/logging"
_PAUSE = 0.02  # seconds between two queries
_DRAIN_SECONDS = 10.0
_LONG_LINE = 100_000
_PART = 16 << 10  # dockerd's


class _Stream:
    """The FIFO of one container, and what dockerd does with it."""

    def __init__(self, plugin: PluginCalls) -> None:
        self._plugin = plugin
        self.id = plugin.name()
        self.file = f"{_DIRECTORY}/{self.id}"
        self.info: dict[str, object] = {
            "Config": plugin.options,
            "ContainerID": self.id,
            "ContainerName": f"/{self.id}",
            "ContainerEntrypoint": "/bin/true",
            "ContainerArgs": None,
            "ContainerImageName": "check",
            "ContainerCreated": "2026-01-01T00:00:00Z",
            "ContainerEnv": None,
            "ContainerLabels": None,
            "DaemonName": "docker",
        }
        base = Path("/run") if not plugin.target.can_restart else None
        self.path = base / self.id if base else plugin.target.host_path(self.file)
        if base:
            self.file = str(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(self.path)
        # also for reading, so that no write fails where the plugin has not opened it; nothing is read here
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def start(self) -> None:
        self._plugin.succeed("StartLogging", File=self.file, Info=self.info)

    def write(self, *entries: LogEntry) -> None:
        data = b"".join(map(encode_frame, entries))
        deadline = time.monotonic() + _DRAIN_SECONDS
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                require(time.monotonic() < deadline, f"nothing reads the FIFO: it is full for {_DRAIN_SECONDS:g} s")
                time.sleep(_PAUSE)

    def wait_until_read(self, when: str) -> None:
        deadline = time.monotonic() + _DRAIN_SECONDS
        while (left := struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, b"\0" * 4))[0]) > 0:
            require(
                time.monotonic() < deadline,
                f"{left} bytes in the FIFO of a container are not read within {_DRAIN_SECONDS:g} s {when}",
            )
            time.sleep(_PAUSE)

    def stop(self) -> None:
        self._plugin.succeed("StopLogging", File=self.file)

    def close(self) -> None:
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)

    def lines(self) -> list[str]:
        """What ReadLogs returns. Raises: CheckFailed, CheckSkipped."""
        found = self._plugin.succeed("Capabilities").get("Cap")
        if not (isinstance(found, dict) and found.get("ReadLogs")):
            raise CheckSkipped("it cannot read logs (Capabilities), so its lines are not compared")
        config = {"Since": "0001-01-01T00:00:00Z", "Until": "0001-01-01T00:00:00Z", "Tail": -1, "Follow": False}
        reply = self._plugin.call("ReadLogs", Info=self.info, Config=config)
        require(reply.status == 200, f"ReadLogs must answer 200; the answer is {reply}")
        decoder, joiner = FrameDecoder(), EntryJoiner()
        entries = [each for each in map(joiner.join, decoder.feed(reply.body)) if each is not None]
        require(not decoder.skipped_bytes, f"ReadLogs must send frames; {decoder.skipped_bytes} bytes are no frames")
        return [each.line.decode(errors="replace").rstrip("\n") for each in (*entries, *joiner.flush())]


@contextmanager
def _stream(plugin: PluginCalls) -> Iterator[_Stream]:
    stream = _Stream(plugin)
    try:
        yield stream
    finally:
        stream.close()


def _entry(line: str, **more: object) -> LogEntry:
    return LogEntry(line.encode(), time_nano=time.time_ns(), **more)  # type: ignore[arg-type]  # names of its fields


def _capabilities(plugin: PluginCalls) -> None:
    reply = plugin.call("Capabilities")
    if reply.status == 404:
        raise CheckSkipped("it has no Capabilities; dockerd takes that for a driver that cannot read logs")
    found = reply.document.get("Cap") if isinstance(reply.document, dict) else None
    is_known = isinstance(found, dict) and isinstance(found.get("ReadLogs"), bool)
    require(is_known, f'Capabilities must answer {{"Cap": {{"ReadLogs": true or false}}}}; it is {reply}')


def _reads(plugin: PluginCalls) -> None:
    with _stream(plugin) as stream:
        stream.start()
        stream.write(*(_entry(f"line {number}") for number in range(1000)))
        stream.wait_until_read("after StartLogging")
        stream.stop()
        found = stream.lines()
        require(found == [f"line {number}" for number in range(1000)], f"1,000 lines are read back as {found[:3]} ...")


def _last_lines(plugin: PluginCalls) -> None:
    with _stream(plugin) as stream:
        stream.start()
        stream.write(_entry("first"))
        stream.write(_entry("last"))
        stream.stop()  # dockerd closes the FIFO after this call
        require(stream.lines()[-1:] == ["last"], "lines that were written before StopLogging must not be lost")


def _long_line(plugin: PluginCalls) -> None:
    text = "x" * _LONG_LINE
    parts = [text[at : at + _PART] for at in range(0, len(text), _PART)]
    with _stream(plugin) as stream:
        stream.start()
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            stream.write(
                _entry(
                    part,
                    is_partial=not is_last,
                    partial_id="p",
                    partial_ordinal=number + 1,
                    is_last_part=is_last,
                )
            )
        stream.wait_until_read("after a line in parts")
        stream.stop()
        found = "".join(stream.lines())
        require(found == text, f"a line of {len(text)} bytes in parts is read back as {len(found)} bytes")


def _two_streams(plugin: PluginCalls) -> None:
    with _stream(plugin) as one, _stream(plugin) as two:
        one.start()
        two.start()
        two.write(_entry("two"))
        two.wait_until_read("while another container writes nothing")
        one.write(_entry("one"))
        one.wait_until_read("while another container is logged")
        for stream in (one, two):
            stream.stop()


def _follows_kill(plugin: PluginCalls) -> None:
    with _stream(plugin) as stream:
        stream.start()
        stream.write(_entry("before"))
        stream.wait_until_read("after StartLogging")
        plugin.target.kill()
        stream.write(_entry("after"))
        stream.wait_until_read(
            "after kill -9 of the plugin: dockerd does not send StartLogging again, so the plugin must remember the "
            "FIFO, or the container blocks when it is full"
        )
        stream.stop()


def _unknown_stream(plugin: PluginCalls) -> None:
    plugin.call("StopLogging", File=f"{_DIRECTORY}/{plugin.name()}")  # any answer
    reply = plugin.call("StartLogging", File=f"{_DIRECTORY}/{plugin.name()}", Info={"ContainerID": plugin.name()})
    require(reply.status >= 200, "StartLogging of a FIFO that does not exist must be answered")


def _follow(plugin: PluginCalls) -> None:
    """``docker logs`` must end where the log does, without Follow."""
    with _stream(plugin) as stream:
        stream.start()
        stream.write(_entry("only"))
        stream.wait_until_read("after StartLogging")
        try:
            require(stream.lines() == ["only"], "ReadLogs must return what was written, also before StopLogging")
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise CheckFailed(f"ReadLogs without Follow must end with the log: {error!r}") from error
        finally:
            stream.stop()


LOG_CHECKS = (
    *common_checks("StopLogging", {"File": f"{_DIRECTORY}/none"})[:2],
    *(each for each in common_checks("Capabilities", {}) if each.id not in ("C01", "C02")),
    ConformanceCheck("L01", "says whether it can read logs", _capabilities),
    ConformanceCheck("L02", "reads the frames of a container", _reads),
    ConformanceCheck("L03", "loses no line that precedes StopLogging", _last_lines),
    ConformanceCheck("L04", "takes a long line in parts", _long_line),
    ConformanceCheck("L05", "logs two containers at the same time", _two_streams),
    ConformanceCheck("L06", "returns a log while the container runs", _follow),
    ConformanceCheck("L07", "answers for a FIFO that it does not know", _unknown_stream),
    ConformanceCheck("L08", "reads on after kill -9", _follows_kill, needs_restart=True),
)
