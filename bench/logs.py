"""What the log keeper takes: bytes and lines a second into a stamped, rotated log, against a reader that only discards.

A writer in C fills a FIFO, in writes of 64 KiB, as lines of 128 bytes, and in one write a line. Rounds are
interleaved (discard, keep, discard, ...), because the machine's mood changes over minutes. Called by scripts/bench.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moorage.logs.keeper_protocol import GREETING, QUIT, pack

PROGRAM = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char block[65536];
int main(int count, char **words) {
    size_t size = atol(words[1]);
    long left = atol(words[2]);
    if (strcmp(words[3], "read") == 0) {
        while (read(0, block, sizeof block) > 0) {
        }
        return 0;
    }
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = i % 128 == 127 ? '\n' : 'x';
    for (; left > 0; left -= size)
        if (write(1, block, size) != (ssize_t)size)
            return 1;
    return 0;
}
"""
LINE, BLOCK = 128, 64 * 1024
MOST_BYTES, FILES = 10 * 1024 * 1024, 3


class Keeper:
    """A keeper of our own, and a connection to it."""

    def __init__(self, state: Path) -> None:
        state.mkdir()
        began = time.perf_counter()
        subprocess.run([sys.executable, "-S", "-P", "-m", "moorage.logs.keeper", str(state)], check=True, env=ENV)
        self.start_seconds = time.perf_counter() - began
        self.pid = int((state / "pid").read_text())
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(str(state / "k.sock"))
        assert self.socket.recv(100) == GREETING

    def take(self, key: str, directory: Path, fifos: list[int]) -> None:
        socket.send_fds(self.socket, [pack("A", key, directory, MOST_BYTES, FILES)], fifos)
        assert self.socket.recv(1000) == pack("a", key)

    def wait(self, key: str) -> None:
        assert self.socket.recv(1000) == pack("d", key)

    def resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self.socket.send(QUIT)
        assert self.socket.recv(10) == b""


ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")}


class Bench:
    """Figures by name, each a list of MB/s (a million bytes as the plugin writes them).

    On a machine with other work the keeper waits for its turn; what it does with a second of CPU says more there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "pour"
        source = directory / "pour.c"
        source.write_text(PROGRAM)
        subprocess.run(["cc", "-O2", "-o", str(self.program), str(source)], check=True)
        self.keeper = Keeper(directory / "state")
        self.results: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.number = 0

    def pour(self, size: int, amount: int, read: Callable[[Path], Callable[[], None]], name: str) -> None:
        """One round: write so much in writes of this size, to the reader of the FIFO."""
        self.number += 1
        fifo = self.directory / f"fifo-{self.number}"
        os.mkfifo(fifo)
        finish = read(fifo)
        with open(fifo, "wb") as output:
            began = time.perf_counter()
            busy = self.keeper.cpu_seconds()
            subprocess.run([self.program, str(size), str(amount), "write"], stdout=output, check=True)
        finish()
        seconds = time.perf_counter() - began
        self.results.setdefault(name, []).append(amount / seconds / 1e6)
        if read == self.keep:
            self.cpu.setdefault(name, []).append(amount / max(self.keeper.cpu_seconds() - busy, 0.01) / 1e6)

    def discard(self, fifo: Path) -> Callable[[], None]:
        child = subprocess.Popen(["sh", "-c", f"exec {self.program} 0 0 read < {fifo}"])

        def finish() -> None:
            child.wait()

        return finish

    def keep(self, fifo: Path) -> Callable[[], None]:
        other = self.directory / f"{fifo.name}-err"
        os.mkfifo(other)
        open_ends = [os.open(each, os.O_RDWR | os.O_NONBLOCK) for each in (fifo, other)]
        reading = [os.open(each, os.O_RDONLY | os.O_NONBLOCK) for each in (fifo, other)]
        self.keeper.take(fifo.name, self.directory / "log", reading)
        for each in reading:
            os.close(each)

        def finish() -> None:
            for each in open_ends:
                os.close(each)
            self.keeper.wait(fifo.name)

        return finish


def measure(rounds: int, directory: Path) -> dict[str, Any]:
    """Run all rounds; figures by name."""
    bench = Bench(directory)
    idle = bench.keeper.resident_bytes()
    for _ in range(rounds):
        for size, amount, what in ((BLOCK, 400_000_000, "64 KiB writes"), (LINE, 60_000_000, "one write a line")):
            bench.pour(size, amount // size * size, bench.discard, f"{what}: discarded")
            bench.pour(size, amount // size * size, bench.keep, f"{what}: stored")
    result = {
        "figures": bench.results,
        "per_cpu_second": bench.cpu,
        "memory_bytes": {"keeper, idle": idle, "keeper, afterwards": bench.keeper.resident_bytes()},
        "start_seconds": bench.keeper.start_seconds,
    }
    bench.keeper.end()
    return result


def table(result: dict[str, Any]) -> str:
    """Medians in MB/s, and what is stored as a ratio to what is discarded."""
    lines = [f"{'':32} {'median':>11} {'min':>10} {'max':>10} {'of its CPU':>12}"]
    medians = {name: statistics.median(values) for name, values in result["figures"].items()}
    for name, values in result["figures"].items():
        busy = result["per_cpu_second"].get(name)
        own = f"{statistics.median(busy):7.0f} MB/s" if busy else ""
        lines.append(f"{name:32} {medians[name]:6.0f} MB/s {min(values):5.0f} MB/s {max(values):5.0f} MB/s {own:>12}")
    lines += [
        f"{what}: stored to discarded {medians[f'{what}: stored'] / medians[f'{what}: discarded']:.2f}"
        for what in ("64 KiB writes", "one write a line")
    ]
    lines += [f"{name}: {size / 2**20:.1f} MiB" for name, size in result["memory_bytes"].items()]
    return "\n".join([*lines, f"start of the keeper: {result['start_seconds'] * 1000:.0f} ms"])


def main() -> None:
    """Measure, print the table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="directory for the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moorage-bench-", dir="/var/tmp") as scratch:
        result = measure(arguments.rounds, Path(scratch))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(table(result))
    if arguments.output is not None:
        now = datetime.now(UTC)
        result |= {
            "at": now.isoformat(timespec="seconds"),
            "command": f"scripts/bench logs --rounds {arguments.rounds}",
            "commit": commit.stdout.strip(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": sys.version.split()[0],
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / f"{now:%Y-%m-%d}-logs.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
