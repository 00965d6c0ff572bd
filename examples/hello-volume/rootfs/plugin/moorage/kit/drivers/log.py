"""Log drivers: ``docker.logdriver/1.0``. The output of a container comes through a FIFO as frames of log entries.

dockerd does not send StartLogging again after a restart of the plugin, so the streams are in a file, and are read again
at the start. Source: moby's daemon/logger/{plugin,adapter,proxy}.go.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from moorage.kit.driver import Driver, DriverCall, log
from moorage.kit.drivers.log_entry import LogEntry, encode_frame
from moorage.kit.drivers.log_reader import LogReader
from moorage.kit.failures import CallFailed
from moorage.kit.messages import decode, to_json
from moorage.kit.state_file import StateFile

__all__ = ("ContainerInfo", "LogDriver", "LogFile", "ReadConfig", "ReadLogs", "StartLogging")


@dataclass(frozen=True)
class ContainerInfo:
    """The container that writes."""

    config: dict[str, str] = field(default_factory=dict)
    """Options of ``--log-opt``."""
    container_id: str = ""
    container_name: str = ""
    """With a slash before it."""
    container_entrypoint: str = ""
    container_args: tuple[str, ...] = ()
    container_image_id: str = ""
    container_image_name: str = ""
    container_created: str = ""
    container_env: tuple[str, ...] = ()
    container_labels: dict[str, str] = field(default_factory=dict)
    log_path: str = ""
    daemon_name: str = ""


@dataclass(frozen=True)
class StartLogging:
    """A container begins to write."""

    file: str
    """Path of the FIFO in the plugin."""
    info: ContainerInfo = field(default_factory=ContainerInfo)


@dataclass(frozen=True)
class LogFile:
    """Names a stream by its FIFO."""

    file: str


@dataclass(frozen=True)
class ReadConfig:
    """What ``docker logs`` requests."""

    since: str = ""
    """As RFC 3339 has it; year 1 for no limit."""
    until: str = ""
    tail: int = 0
    """Lines from the end; below 1 for all."""
    follow: bool = False


@dataclass(frozen=True)
class ReadLogs:
    """Read the log of a container."""

    info: ContainerInfo = field(default_factory=ContainerInfo)
    config: ReadConfig = field(default_factory=ReadConfig)


class LogDriver(Driver):
    """A log driver: implement ``write``, and ``read_logs`` for ``docker logs``."""

    kind: ClassVar[str] = "LogDriver"
    calls: ClassVar[Mapping[str, DriverCall]] = {
        "StartLogging": DriverCall("start_logging", StartLogging),
        "StopLogging": DriverCall("stop_logging", LogFile),
        "Capabilities": DriverCall("capabilities"),
        "ReadLogs": DriverCall("send_logs", ReadLogs),
    }

    def __init__(self, state: Path) -> None:
        """``state``: the file of the open streams, in the root file system or where it outlives an upgrade."""
        self._file = StateFile(state)
        self._readers: dict[str, tuple[LogReader, ContainerInfo]] = {}
        self._lock = threading.Lock()

    def check(self, info: ContainerInfo) -> None:
        """Called before a container is logged; raise ``CallFailed`` for options that are wrong."""

    def write(self, info: ContainerInfo, entry: LogEntry) -> None:
        """A whole line of a container. Called by one thread for each container; what it raises is logged."""
        raise NotImplementedError

    def closed(self, info: ContainerInfo) -> None:
        """The last line of a container has been written."""

    def read_logs(self, info: ContainerInfo, config: ReadConfig) -> Iterator[LogEntry]:
        """Lines of a container for ``docker logs``, oldest first."""
        raise CallFailed("this driver cannot read logs")

    # the protocol

    def start(self) -> None:
        """Read the streams that were open when the plugin was killed or stopped."""
        for file, info in self._file.load().get("streams", {}).items():
            try:
                self._open(StartLogging(file, decode(ContainerInfo, info)))
            except (CallFailed, OSError) as error:
                log(f"the stream {file} is not continued: {error}")
        self._save()

    def stop(self) -> None:
        """Read what has been written, and leave the streams to the next start."""
        with self._lock:
            for reader, _ in self._readers.values():
                reader.stop()

    def start_logging(self, request: StartLogging) -> None:
        """Read a FIFO; again after a restart of dockerd, which sends the same name."""
        self.check(request.info)
        with self._lock:
            known = self._readers.pop(request.file, None)
            if known is not None:
                known[0].stop()
            self._open(request)
            self._save()

    def stop_logging(self, request: LogFile) -> None:
        """Read a FIFO to its last line; an unknown one is no failure."""
        with self._lock:
            known = self._readers.pop(request.file, None)
            if known is None:
                return
            self._save()
        known[0].stop()
        self.closed(known[1])

    def capabilities(self) -> dict[str, dict[str, bool]]:
        """Whether it can read logs."""
        return {"Cap": {"ReadLogs": type(self).read_logs is not LogDriver.read_logs}}

    def send_logs(self, request: ReadLogs) -> Iterator[bytes]:
        """The frames of ``read_logs``."""
        entries = self.read_logs(request.info, request.config)
        return (encode_frame(each) for each in entries)

    def _open(self, request: StartLogging) -> None:
        reader = LogReader(Path(request.file), lambda entry: self.write(request.info, entry))
        reader.start()
        self._readers[request.file] = reader, request.info

    def _save(self) -> None:
        streams: dict[str, Any] = {file: to_json(info) for file, (_, info) in self._readers.items()}
        self._file.save({"version": 1, "streams": streams})
