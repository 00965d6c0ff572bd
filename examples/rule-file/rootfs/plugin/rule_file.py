"""An authorization driver with a file of rules: the first one that fits a request decides; without one it is denied.

A rule is a line `allow|deny METHOD PATH`: METHOD is a HTTP method or `*`; in PATH, which is compared without the API
version and the query, `*` stands for anything. The file is read again when it has changed.
"""

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

from moorage.kit import ALLOWED, AuthorizationRequest, AuthzDriver, CallFailed, Decision, deny, serve

RULES = Path(os.environ.get("RULES", "/rules"))


class RuleFile(AuthzDriver):
    """What cannot be decided is denied."""

    def __init__(self) -> None:
        self.rules: list[tuple[str, str, str]] = []
        self.read_at = -1

    def check_request(self, request: AuthorizationRequest) -> Decision:
        path = re.sub(r"^/v[0-9.]+(?=/)", "", request.request_uri.partition("?")[0])
        for verdict, method, pattern in self.current_rules():
            if method in ("*", request.request_method) and fnmatchcase(path, pattern):
                return ALLOWED if verdict == "allow" else deny(f"{RULES}: deny {method} {pattern}")
        return deny(f"no rule allows {request.request_method} {path}")

    def current_rules(self) -> list[tuple[str, str, str]]:
        changed_at = RULES.stat().st_mtime_ns
        if changed_at != self.read_at:
            self.rules = [parsed(line) for line in RULES.read_text().splitlines() if line and line[0] != "#"]
            self.read_at = changed_at
        return self.rules


def parsed(line: str) -> tuple[str, str, str]:
    words = line.split()
    if len(words) != 3 or words[0] not in ("allow", "deny"):
        raise CallFailed(f"{RULES}: {line!r} is not allow|deny METHOD PATH")
    return words[0], words[1], words[2]


if __name__ == "__main__":
    serve(RuleFile(), socket="rule-file.sock")
