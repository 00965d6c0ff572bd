"""``moorage ls``: what an operator sees of each plugin, in a table, on a terminal and as JSON."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from secrets import token_hex

import pytest
from anyio.from_thread import start_blocking_portal
from msgspec.structs import replace

from moorage.api.server import serve_api
from moorage.engine.lifecycle import State
from moorage.engine.values import LastExit, PluginView
from moorage.plugins import NO_OVERRIDES, effective_settings, parse_config
from support.fake_backend import FakeBackend
from support.limits import limit

HEAD = ["ID", "NAME", "STATE", "UPTIME", "RESTARTS", "LAST EXIT", "NEXT TRY", "DESCRIPTION"]


def ago(**distance: float) -> datetime:
    return datetime.now(UTC) - timedelta(**distance)


def plugins() -> list[PluginView]:
    raw = b'{"description": "one with a description that is long", "entrypoint": ["/p"], "interface": {"socket": "p"}}'
    config = parse_config(raw).config
    settings = effective_settings(config, NO_OVERRIDES)
    plain = PluginView("", "", "", True, State.READY, config, settings)
    seen = {
        "ready:1": replace(plain, started_at=ago(minutes=3.5), ready_at=ago(seconds=5), restarts=2, pid=7),
        "back:1": replace(
            plain,
            state=State.RESTARTING,
            restarts=9,
            last_exit=LastExit(137, "SIGKILL", oom=True, at=ago(minutes=2.5)),
            next_try_at=ago(minutes=-1.5),
        ),
        "never:1": replace(plain, state=State.FAILED, last_exit=LastExit(at=ago(hours=1.5), error="no such file")),
        "off:1": replace(plain, state=State.DISABLED, enabled=False, last_exit=LastExit(3, at=ago(days=2.5))),
    }
    return [replace(view, id=token_hex(32), name=name) for name, view in seen.items()]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of an engine with these plugins."""
    backend, path = FakeBackend(), tmp_path_factory.mktemp("api") / "m.sock"
    backend.plugins = {each.id: each for each in plugins()}
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(portal.call(serve_api, backend, path, None)),
    ):
        yield path


def command(host: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "moorage", "--host", str(host), *words]


def run(host: Path, *words: str) -> str:
    done = subprocess.run(command(host, *words), capture_output=True, text=True, timeout=limit(30), check=True)
    return done.stdout


def test_l02_m05_case_103_ls_shows_state_uptime_restarts_last_exit_and_next_try(host: Path) -> None:
    head, *lines = run(host, "ls").splitlines()
    assert re.split(r"\s{2,}", head) == HEAD
    cells = {row[1]: [*row[2:-1]] for row in (columns(head, line) for line in lines)}
    assert cells == {
        "back:1": ["restarting", "", "9", "out of memory, 2 minutes ago", "in 1 minute"],
        "never:1": ["failed", "", "0", "did not start, 1 hour ago", ""],
        "off:1": ["disabled", "", "0", "3, 2 days ago", ""],
        "ready:1": ["ready", "3 minutes", "2", "", ""],
    }


def columns(head: str, line: str) -> list[str]:
    """The cells of a line, by where its head's words begin."""
    starts = [*(head.index(word) for word in HEAD), None]
    return [line[begin:end].strip() for begin, end in pairwise(starts)]


def test_l02_ls_and_inspect_give_the_same_as_json(host: Path) -> None:
    seen = {each["Name"]: each["Moorage"] for each in map(json.loads, run(host, "ls", "--json").splitlines())}
    ready, back = seen["ready:1"], seen["back:1"]
    assert (ready["State"], ready["Restarts"], ready["LastExit"], ready["NextTryAt"]) == ("ready", 2, None, None)
    assert datetime.fromisoformat(ready["StartedAt"]) < ago(minutes=3)
    assert ready["UptimeSeconds"] >= 210
    assert (back["StartedAt"], back["UptimeSeconds"]) == (None, None)
    assert (back["LastExit"]["Code"], back["LastExit"]["OOM"]) == (137, True)
    assert datetime.fromisoformat(back["NextTryAt"]) > ago(minutes=1)
    shown = json.loads(run(host, "inspect", "ready:1"))[0]["Moorage"]
    assert {**ready, "UptimeSeconds": 0, "Processes": []} == {**shown, "UptimeSeconds": 0}


def test_l02_states_have_colours_on_a_terminal_only(host: Path) -> None:
    assert "\x1b" not in run(host, "ls")
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command(host, "ls"), stdout=terminal, env=environment) as child:
        os.close(terminal)
        seen = b""
        try:
            while data := os.read(controller, 65536):
                seen += data
        except OSError:
            pass  # Linux's way to say that the other end is closed
        os.close(controller)
        assert child.wait(limit(30)) == 0
    lines = seen.decode().splitlines()
    assert re.findall(r"\x1b\[(3\d)m", seen.decode()) == ["33", "31", "32"]
    plain = [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in lines]
    assert [line.index("one with") for line in plain[1:]] == [plain[0].index("DESCRIPTION")] * 4
