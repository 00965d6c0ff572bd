"""Completion in real shells, against an API that is really served."""

import importlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from anyio.from_thread import start_blocking_portal
from msgspec.structs import replace

import moorage
from moorage.api.server import serve_api
from moorage.cli.main import COMMANDS
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginView
from moorage.plugins import NO_OVERRIDES, effective_settings, parse_config
from support.fake_backend import FakeBackend
from support.limits import limit
from support.shells import PROMPT, Terminal, bash, terminal, zsh

PLUGINS = ("hello:latest", "held:1.0", "volumes:2.1", "volumes:2.2", "example.org/team/logs:latest")


def view(name: str) -> PluginView:
    config = parse_config(b'{"entrypoint": ["/p"], "interface": {"socket": "p.sock"}}').config
    settings = effective_settings(config, NO_OVERRIDES)
    plain = PluginView(token_hex(32), name, name, False, State.DISABLED, config, settings)
    return replace(plain, enabled=True, state=State.READY) if name == "held:1.0" else plain


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of an engine with plugins."""
    backend, path = FakeBackend(), tmp_path_factory.mktemp("api") / "m.sock"
    views = [view(name) for name in PLUGINS]
    backend.plugins = {each.id: each for each in views}
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(portal.call(serve_api, backend, path, None)),
    ):
        yield path


@pytest.fixture(scope="module")
def environment(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Finds a command ``moorage`` and the engine, and nothing of the user's."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "moorage"
    source = Path(moorage.__file__).parents[1]
    program.write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -m moorage "$@"\n')
    program.chmod(0o755)
    home = str(tmp_path_factory.mktemp("home"))
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": home,
        "TERM": "dumb",
        "COLUMNS": "200",
        "LC_ALL": "C.UTF-8",
        "MOORAGE_HOST": f"unix://{engine}",
    }


def source(shell: str, environment: dict[str, str]) -> str:
    done = subprocess.run(["moorage", "completion", shell], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


# What is typed before the tabulator, and the line after it, for shells that complete what is the only completion.
LINES = [
    ("moorage comp", "moorage completion "),
    ("moorage completion ba", "moorage completion bash "),
    ("moorage completion fis", "moorage completion fish "),
    ("moorage ena", "moorage enable "),
    ("moorage enable hell", "moorage enable hello "),
    ("moorage enable hello:l", "moorage enable hello:latest "),
    ("moorage enable volumes:2.", "moorage enable volumes:2."),
    ("moorage enable vol", "moorage enable volumes:2."),
    ("moorage inspect held:", "moorage inspect held:1.0 "),
    ("moorage inspect held:1.0 hell", "moorage inspect held:1.0 hello "),
    ("moorage rm exam", "moorage rm example.org/team/logs "),
    ("moorage policy hello --rest", "moorage policy hello --restart "),
    ("moorage policy hello --restart n", "moorage policy hello --restart no "),
    ("moorage --js", "moorage --json "),
    ("moorage --host unix:///nowhere enable hell", "moorage --host unix:///nowhere enable hell"),
    ("moorage --host /nowhere logs hell", "moorage --host /nowhere logs hell"),
]


@pytest.fixture(scope="module")
def real_bash(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    command = bash(tmp_path_factory.mktemp("bash") / "rc", source("bash", environment))
    with terminal(command, environment) as made:
        made.until(PROMPT)
        yield made


@pytest.fixture(scope="module")
def real_zsh(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    more = zsh(tmp_path_factory.mktemp("zsh"), source("zsh", environment))
    with terminal(["zsh", "-i"], environment | more) as made:
        made.until(PROMPT)
        yield made


@pytest.mark.parametrize(("typed", "completed"), LINES)
def test_bash_completes(real_bash: Terminal, typed: str, completed: str) -> None:
    assert real_bash.completed(typed) == completed


@pytest.mark.needs("zsh")
@pytest.mark.parametrize(("typed", "completed"), LINES)
def test_zsh_completes(real_zsh: Terminal, typed: str, completed: str) -> None:
    assert real_zsh.completed(typed).rstrip() == completed.rstrip()


def test_bash_completes_directories_only_where_one_is_requested(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "some where").mkdir()
    (tmp_path / "some-file").touch()
    command = bash(tmp_path / "rc", source("bash", environment) + f"\ncd {tmp_path}")
    with terminal(command, environment) as shell:
        shell.until(PROMPT)
        assert shell.completed("moorage run some") == "moorage run some\\ where/"


def test_bash_shows_every_command(environment: dict[str, str], tmp_path: Path) -> None:
    command = bash(tmp_path / "rc", source("bash", environment) + "\nbind 'set show-all-if-ambiguous on'")
    with terminal(command, environment) as shell:
        shell.until(PROMPT)
        shell.type("moorage \t")
        assert set(COMMANDS) <= set(shell.until(PROMPT).split())


def fish(environment: dict[str, str], line: str) -> dict[str, str]:
    """What fish offers, with what it says of each."""
    script = f'{source("fish", environment)}\ncomplete --do-complete "{line}"'
    done = subprocess.run(["fish", "--no-config", "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return {value: said for value, _, said in (each.partition("\t") for each in done.stdout.splitlines())}


@pytest.mark.needs("fish")
def test_fish_completes_with_a_description(environment: dict[str, str]) -> None:
    assert set(fish(environment, "moorage ")) == set(COMMANDS)
    assert fish(environment, "moorage ls")["ls"].startswith("List plugins with their states")
    assert fish(environment, "moorage enable he") == {"hello": "disabled", "held:1.0": "ready"}
    assert fish(environment, "moorage rm hello vol") == {"volumes:2.1": "disabled", "volumes:2.2": "disabled"}
    assert set(fish(environment, "moorage policy x --restart ")) == {"no", "always", "on-failure", "unless-stopped"}
    assert fish(environment, "moorage --host unix:///nowhere enable he") == {}


def test_where_no_engine_answers_nothing_is_said(environment: dict[str, str], tmp_path: Path) -> None:
    for host in (str(tmp_path / "none"), "no-socket", "tcp://1.2.3.4:5"):
        variables = {"MOORAGE_HOST": host, "_MOORAGE_COMPLETE": "bash_complete", "COMP_HEAD": "moorage enable "}
        done = subprocess.run(["moorage"], env=environment | variables, capture_output=True, text=True, check=True)
        assert (done.stdout.strip(), done.stderr) == ("", "")


def say(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(answer)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[{'a': 1}", b"nonsense\r\n"])
def test_an_engine_that_hangs_or_talks_nonsense_delays_no_key(
    environment: dict[str, str], tmp_path: Path, answer: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/m.sock")
        listener.listen()
        if answer:  # else the kernel takes the connection and there is no answer
            threading.Thread(target=lambda: say(listener, answer), daemon=True).start()
        variables = {
            "_MOORAGE_COMPLETE": "bash_complete",
            "COMP_HEAD": "moorage enable ",
            "MOORAGE_HOST": f"{tmp_path}/m.sock",
        }
        done = subprocess.run(
            ["moorage"], env=environment | variables, capture_output=True, text=True, check=True, timeout=limit(10)
        )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_every_argument_that_is_a_plugin_completes() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/commands.md").read_text()
    with_plugins = set(re.findall(r"^## moorage (\S+) \[?PLUGIN", page, re.MULTILINE))
    assert with_plugins == {
        "call", "disable", "enable", "exec", "export", "inspect", "kill", "logs", "policy", "probe", "publish", "push",
        "rename", "restart", "rm", "save", "set", "stats", "tag", "top", "unpublish", "upgrade", "wait",
    }  # fmt: skip
    for name in with_plugins:
        command = importlib.import_module(f"moorage.cli.cmd_{name}").command
        first = next(each for each in command.params if each.param_type_name == "argument")
        assert first._custom_shell_complete is not None, name
