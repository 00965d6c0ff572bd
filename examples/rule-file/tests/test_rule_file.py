"""Tests of rule-file: its program as a process, without a container."""

import os
import sys
import tempfile
import unittest
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[1] / "rootfs" / "plugin"
sys.path.insert(0, str(PLUGIN))

from moorage.kit import CallFailed, RunningPlugin  # noqa: E402


class Test(unittest.TestCase):
    def setUp(self) -> None:
        directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.rules = directory / "rules"
        self.rules.write_text("# images stay\ndeny DELETE /images/*\nallow * *\n")
        command = [sys.executable, str(PLUGIN / "rule_file.py")]
        self.plugin = self.enterContext(RunningPlugin(command, directory, RULES=str(self.rules)))

    def decide(self, method: str, uri: str) -> bool:
        request = {"RequestMethod": method, "RequestUri": uri}
        return bool(self.plugin.call("AuthZPlugin.AuthZReq", request)["Allow"])

    def test_the_first_rule_that_fits_decides(self) -> None:
        self.assertTrue(self.decide("GET", "/v1.41/images/json"))
        self.assertFalse(self.decide("DELETE", "/v1.41/images/a?force=1"))

    def test_without_a_rule_it_is_denied_and_a_change_counts_at_once(self) -> None:
        self.rules.write_text("allow GET /info\n")
        os.utime(self.rules, (1, 1))
        self.assertTrue(self.decide("GET", "/v1.41/info"))
        self.assertFalse(self.decide("POST", "/v1.41/containers/create"))

    def test_a_rule_that_is_wrong_allows_nothing(self) -> None:
        self.rules.write_text("permit everything\n")
        os.utime(self.rules, (2, 2))
        with self.assertRaisesRegex(CallFailed, "allow|deny"):
            self.decide("GET", "/v1.41/info")


if __name__ == "__main__":
    unittest.main()
