"""The configuration of pre-commit, read and run by pre-commit itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRE_COMMIT = (sys.executable, "-m", "pre_commit")


def test_pre_commit_accepts_the_configuration() -> None:
    done = subprocess.run(
        [*PRE_COMMIT, "validate-config", ROOT / ".pre-commit-config.yaml"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("status", [0, 1])
def test_a_commit_is_made_only_if_the_lint_passes(tmp_path: Path, status: int) -> None:
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "HOME": str(tmp_path), "PRE_COMMIT_HOME": str(tmp_path / "cache"),
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org",
    }  # fmt: skip
    checkout = tmp_path / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / ".pre-commit-config.yaml", checkout)
    lint = checkout / "scripts/lint"
    lint.write_text(f"#!/bin/sh\ntouch linted\nexit {status}\n")
    lint.chmod(0o755)

    def run(*command: str) -> int:
        return subprocess.run(command, cwd=checkout, env=settings, capture_output=True).returncode

    assert run("git", "init", "--quiet") == run("git", "add", ".") == 0
    assert run(*PRE_COMMIT, "install") == 0
    assert (run("git", "commit", "--quiet", "-m", "Try it") == 0) is (status == 0)
    assert (checkout / "linted").exists()
