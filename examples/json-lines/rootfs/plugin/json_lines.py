"""A log driver that writes JSON lines: a file for each container, with one older one beside it.

Options of a container: `max-size`, in bytes, after which a new file is begun (10 MiB).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from moorage.kit import CallFailed, ContainerInfo, LogDriver, LogEntry, ReadConfig, serve

LOGS = Path(os.environ.get("LOGS", "/var/log/containers"))


class JsonLines(LogDriver):
    """`write` is called for each line, `read_logs` by `docker logs`."""

    def check(self, info: ContainerInfo) -> None:
        if unknown := sorted(set(info.config) - {"max-size"}):
            raise CallFailed(f"unknown log option {', '.join(unknown)}: there is only max-size")
        if not info.config.get("max-size", "0").isdecimal():
            raise CallFailed("max-size must be a number of bytes")

    def write(self, info: ContainerInfo, entry: LogEntry) -> None:
        path = self.path(info)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = {"time": entry.time_nano, "stream": entry.source, "line": entry.line.decode(errors="replace")}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            is_full = file.tell() >= int(info.config.get("max-size", 10 << 20))
        if is_full:
            path.replace(path.with_suffix(".old"))

    def read_logs(self, info: ContainerInfo, config: ReadConfig) -> Iterator[LogEntry]:
        path = self.path(info)
        files = [each for each in (path.with_suffix(".old"), path) if each.exists()]
        lines = [line for each in files for line in each.read_text().splitlines()]
        for line in map(json.loads, lines[-config.tail :] if config.tail > 0 else lines):
            yield LogEntry(line["line"].encode() + b"\n", line["stream"], line["time"])

    def path(self, info: ContainerInfo) -> Path:
        return LOGS / f"{Path(info.container_id).name}.jsonl"


if __name__ == "__main__":
    serve(JsonLines(LOGS / "streams.json"), socket="json-lines.sock")
