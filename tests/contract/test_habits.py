"""What fingers that know docker, podman and systemctl expect of the command line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from moorage.api.server import serve_api
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginView
from moorage.plugins import NO_OVERRIDES, effective_settings, parse_config
from support.fake_backend import FakeBackend
from support.limits import limit
from support.terminals import show

DESCRIPTION = "日本語 one with a description that is much longer than any terminal has room for"


def view(number: int, name: str, state: State) -> PluginView:
    raw = {
        "description": DESCRIPTION,
        "entrypoint": ["/p"],
        "interface": {"socket": "p", "types": ["docker.volumedriver/1.0"]},
    }
    config = parse_config(json.dumps(raw).encode()).config
    settings = effective_settings(config, NO_OVERRIDES)
    return PluginView(f"{number}" * 64, name, "", state is not State.DISABLED, state, config, settings)


@pytest.fixture
def backend() -> FakeBackend:
    made = FakeBackend()
    for number, (name, state) in enumerate(
        {
            "vol:latest": State.READY,
            "registry.example.org/a-team/with-a-long-name:1.0": State.RESTARTING,
            "plain:latest": State.DISABLED,
        }.items(),
        1,
    ):
        each = view(number, name, state)
        made.plugins[each.id] = each
    return made


@pytest.fixture
def host(backend: FakeBackend, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "m.sock"
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(portal.call(serve_api, backend, path, None)),
    ):
        yield str(path)


def call(host: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "moorage", "--host", host, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit(30), check=False)


def lines(host: str, *words: str) -> list[str]:
    done = call(host, *words)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        *((columns, words) for columns in (20, 80, 200) for words in (("ls",), ("stats", "--once", "-a"))),
        *((columns, ("df",)) for columns in (80, 200)),
    ],
)
def test_h04_tables_fit_the_terminal(host: str, backend: FakeBackend, columns: int, words: tuple[str, ...]) -> None:
    screen = show(columns, "--host", host, *words)
    assert screen.status == 0
    for line in screen.lines:
        wide = sum(ord(each) > 0x2E80 for each in line)
        assert len(line) + wide <= columns, line
    assert sum("reg" in line for line in screen.lines) == 1


def test_h04_80_columns_show_ids_names_and_states_and_cut_the_description(host: str) -> None:
    head, *rows = show(80, "--host", host, "ls").lines
    assert head.split()[:3] == ["ID", "NAME", "STATE"]
    assert all(row.startswith(f"{number}" * 12 + " ") for row, number in zip(rows, "321", strict=True))
    assert ["restarting" in row for row in rows] == [False, True, False]
    assert all("…" in row for row in rows)
    assert DESCRIPTION in "".join(show(80, "--host", host, "ls", "--no-trunc").lines)


def test_h04_colours_respect_no_color_and_pipes(host: str) -> None:
    assert "\x1b[3" in show(80, "--host", host, "ls").raw
    assert "\x1b" not in show(80, "--host", host, "ls", NO_COLOR="1").raw
    assert "\x1b" not in call(host, "ls").stdout


def test_h01_ls_has_dockers_fields_in_templates(host: str) -> None:
    assert lines(host, "ls", "--format", "{{.ID}} {{.Name}} {{.Enabled}}", "-f", "name=vol") == [
        "111111111111 vol:latest true"
    ]
    (row,) = map(json.loads, lines(host, "ls", "--format", "json", "-f", "name=vol", "--no-trunc"))
    docker = {key: row[key] for key in ("ID", "Name", "Description", "Enabled", "PluginReference")}
    assert docker == {
        "ID": "1" * 64,
        "Name": "vol:latest",
        "Description": DESCRIPTION,
        "Enabled": True,
        "PluginReference": "",
    }
    assert lines(host, "ls", "--format", r"table {{.Name}}\t{{.State}}", "--filter", "state=ready") == [
        "NAME         STATE",
        "vol:latest   ready",
    ]
    assert lines(host, "ls", "--format", "table")[0].split()[:2] == ["ID", "NAME"]


def test_h01_quiet_goes_with_everything(host: str) -> None:
    assert lines(host, "ls", "-q", "--filter", "enabled=false") == ["3" * 12]
    assert lines(host, "ls", "-q", "--no-trunc", "--filter", "state=ready") == ["1" * 64]
    assert lines(host, "ls", "-q", "--json", "--filter", "id=11") == ['{"Id": "111111111111"}']
    assert lines(host, "ls", "-q", "--format", "{{.Name}}", "--filter", "id=11") == ["vol:latest"]
    assert lines(host, "ls", "-q", "--filter", "capability=logdriver") == []
    assert len(lines(host, "ls", "-q", "--filter", "capability=volumedriver")) == 3


def test_h01_inspect_takes_templates(host: str) -> None:
    assert lines(host, "inspect", "vol", "-f", "x")[0] == "x"
    assert lines(host, "inspect", "vol", "--format", "{{.Id}} {{.Moorage.State}} {{json .Config.Interface.Types}}") == [
        "1" * 64 + ' ready ["docker.volumedriver/1.0"]'
    ]
    wrong = call(host, "inspect", "vol", "--format", "{{.Nme}}")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "there is no field .Nme; did you mean .Name?" in wrong.stderr


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("ls", "--filter", "stat=ready"), "unknown key stat; did you mean state?"),
        (("ls", "--filter", "ready"), "it is not KEY=VALUE"),
        (("ls", "--filter", "enabled=maybe"), "give true or false"),
        (("ls", "--format", "{{.ID"), "unclosed action"),
        (("ls", "--json", "--format", "json"), "give --json or --format"),
    ],
)
def test_h01_h02_what_cannot_be_used_is_refused(host: str, words: tuple[str, ...], cause: str) -> None:
    done = call(host, *words)
    assert done.returncode != 0
    assert done.stdout == ""
    assert cause in done.stderr


@pytest.mark.parametrize(
    "words", [("--json", "inspect", "vol"), ("inspect", "--json", "vol"), ("inspect", "vol", "--json")]
)
def test_h04_json_may_be_anywhere_on_the_line(host: str, words: tuple[str, ...]) -> None:
    assert [json.loads(line)["Name"] for line in lines(host, *words)] == ["vol:latest"]


def states(backend: FakeBackend) -> dict[str, bool]:
    return {each.name.partition(":")[0].rpartition("/")[2]: each.enabled for each in backend.plugins.values()}


def test_h02_several_names_at_once_and_all(host: str, backend: FakeBackend) -> None:
    assert lines(host, "disable", "vol", "with-a-long-name:1.0".join(["registry.example.org/a-team/", ""])) == [
        "vol",
        "registry.example.org/a-team/with-a-long-name:1.0",
    ]
    assert not any(states(backend).values())
    assert len(lines(host, "enable", "--all")) == 3
    assert all(states(backend).values())
    assert len(lines(host, "restart", "-a")) == 3
    assert lines(host, "disable", "--all", "--json")[0] == '{"Name": "plain:latest"}'
    assert len(lines(host, "rm", "--all")) == 3
    assert lines(host, "rm", "--all") == []


def test_h02_what_is_so_already_is_success(host: str, backend: FakeBackend) -> None:
    assert lines(host, "enable", "vol") == ["vol"]
    assert lines(host, "disable", "plain", "plain") == ["plain", "plain"]
    assert lines(host, "rm", "--ignore", "nothing", "plain") == ["plain"]


def test_h02_a_failure_does_not_stop_the_rest(host: str, backend: FakeBackend) -> None:
    done = call(host, "disable", "nothing", "vol")
    assert (done.returncode, done.stdout) == (1, "vol\n")
    assert 'plugin "nothing:latest" not found' in done.stderr or 'plugin "nothing" not found' in done.stderr
    assert states(backend)["vol"] is False


@pytest.mark.parametrize("verb", ["enable", "disable", "restart", "rm", "upgrade"])
def test_h02_neither_names_nor_all_is_a_wrong_call(host: str, verb: str) -> None:
    done = call(host, verb)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--all" in done.stderr


def test_h07_rm_of_an_enabled_plugin_says_what_to_do(host: str) -> None:
    done = call(host, "rm", "vol")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "moorage: cannot remove plugin vol: it is enabled; disable it first, or rm -f\n"
    assert lines(host, "rm", "-f", "vol") == ["vol"]
