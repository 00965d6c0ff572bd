"""Tests of json-lines: its program as a process, without a container."""

import json
import os
import sys
import tempfile
import unittest
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[1] / "rootfs" / "plugin"
sys.path.insert(0, str(PLUGIN))

from moorage.kit import CallFailed, LogEntry, RunningPlugin, encode_frame  # noqa: E402


class Test(unittest.TestCase):
    def setUp(self) -> None:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        command = [sys.executable, str(PLUGIN / "json_lines.py")]
        self.plugin = self.enterContext(RunningPlugin(command, directory, LOGS=str(directory)))
        self.fifo = directory / "fifo"
        os.mkfifo(self.fifo)

    def test_lines_are_in_the_file_when_logging_has_stopped(self) -> None:
        self.plugin.call("LogDriver.StartLogging", {"File": str(self.fifo), "Info": {"ContainerID": "c1"}})
        with self.fifo.open("wb") as file:
            file.write(encode_frame(LogEntry(b"hello", "stderr", 7)))
        self.plugin.call("LogDriver.StopLogging", {"File": str(self.fifo)})
        line = json.loads((self.fifo.parent / "c1.jsonl").read_text())
        self.assertEqual(line, {"time": 7, "stream": "stderr", "line": "hello"})

    def test_a_fifo_that_does_not_exist_is_refused(self) -> None:
        with self.assertRaises(CallFailed):
            self.plugin.call("LogDriver.StartLogging", {"File": "/no/such/fifo"})


if __name__ == "__main__":
    unittest.main()
