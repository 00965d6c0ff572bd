"""The command line itself: help, wrong calls, and that a command imports only what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import moorage
from moorage.cli import cmd_serve
from support.limits import limit

pytestmark = pytest.mark.quick

SOURCE = Path(moorage.__file__).parents[1]
COMMANDS = (
    "apply", "build", "call", "completion", "context", "cp", "create", "df", "disable", "doctor", "down", "enable",
    "events", "exec", "export", "inspect", "install", "kill", "load", "login", "logout", "logs", "ls", "migrate", "new",
    "policy", "privileges", "probe", "prune", "publish", "push", "rename", "restart", "rm", "run", "save", "serve",
    "set", "stats", "tag", "test", "top", "ui", "unpublish", "upgrade", "version", "volume", "wait",
)  # fmt: skip


def call(*words: str, options: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *options, "-m", "moorage", *words]
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit(10), check=False)


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)])
def test_help_goes_to_standard_output(words: list[str]) -> None:
    done = call(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")


def test_help_names_every_command_with_what_it_does() -> None:
    lines = [line.split(None, 1) for line in call("--help").stdout.partition("Commands:\n")[2].splitlines()]
    assert tuple(line[0] for line in lines) == COMMANDS
    assert all(len(line) == 2 for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "--nonsense"),
        (["run"], "Missing argument 'DIRECTORY'"),
        (["run", "--timeout", "soon", "."], "'soon' is not a valid float"),
        (["run", "--timeout", "0", "."], "--timeout"),
        (["run", "--timeout", "nan", "."], "it is not a number"),
        (["version", "more"], "unexpected extra argument"),
    ],
)
def test_a_wrong_call_is_reported_with_status_2(words: list[str], said: str) -> None:
    done = call(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_without_a_command_help_is_shown_as_a_wrong_call() -> None:
    done = call()
    assert done.returncode == 2
    assert "Usage: " in done.stderr


def test_version_shows_client_and_server() -> None:
    assert moorage.__version__ in call("--version").stdout
    lines = dict(line.split(None, 1) for line in call("version").stdout.splitlines())
    assert list(lines) == ["moorage", "containerd", "runc", "crun", "runtime", "python", "kernel"]
    assert lines["moorage"] == moorage.__version__
    assert json.loads(call("--json", "version").stdout) == lines


@pytest.mark.parametrize(
    ("words", "needless"),
    [
        (
            ["version"],
            {
                "grpclib",
                "aiohttp",
                "uvloop",
                "google.protobuf",
                "elftools",
                "moorage.engine",
                "moorage.foreground.session",
            },
        ),
        (["--help"], {"grpclib", "aiohttp", "anyio", "msgspec", "moorage.engine", "moorage.cli.run_output"}),
        (["run", "--help"], {"grpclib", "aiohttp", "elftools"}),
        (["serve", "--help"], {"grpclib", "aiohttp", "prometheus_client"}),
    ],
)
def test_a_command_imports_only_what_it_needs(words: list[str], needless: set[str]) -> None:
    done = call(*words, options=("-X", "importtime"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.returncode == 0
    # not cli.main: where an engine serves this machine, the quick command asks it for the version
    assert "moorage.cli.quick.entry" in imported
    assert imported & needless == set()


@pytest.mark.parametrize(("words", "old"), [(["--grants", "/g"], None), (["--policy", "/g"], "/g")])
def test_h07_serve_takes_grants_and_for_a_release_also_policy(words: list[str], old: str | None) -> None:
    params = cmd_serve.command.make_context("serve", words).params
    assert {str(each) for each in (params["grants"], params["policy"]) if each} == {"/g"}
    assert old is None or str(params["policy"]) == old
    assert "--policy" not in call("serve", "--help").stdout


@pytest.mark.parametrize(
    ("words", "variable", "is_live"),
    [
        ([], "", True),
        ([], "0", False),
        ([], "1", True),
        (["--no-live-restore"], "1", False),
        (["--live-restore"], "0", True),
    ],
)
def test_m08_live_restore_is_on_unless_it_is_switched_off(
    monkeypatch: pytest.MonkeyPatch, words: list[str], variable: str, is_live: bool
) -> None:
    monkeypatch.setenv("MOORAGE_LIVE_RESTORE", variable)
    assert cmd_serve.command.make_context("serve", words).params["live_restore"] is is_live
