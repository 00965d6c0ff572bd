import ast
import logging
from pathlib import Path

import pytest

import moorage
from moorage._lib.journal import JournalFormatter, LineFormatter
from moorage.cli import terminal
from moorage.cli.main import main

pytestmark = pytest.mark.quick

SOURCE = Path(moorage.__file__).parent
PRINTING = {
    "stream.write",
    "stream.buffer.write",
    "print",
    "click.echo",
    "click.echo_via_pager",
    "click.secho",
    "click.style",
    "click.confirm",
    "click.prompt",
    "click.pause",
    "logging.Formatter",
    "sys.stdout.write",
    "sys.stderr.write",
    "sys.stdout.buffer.write",
    "sys.stderr.buffer.write",
}
ALLOWED = {
    ("cli/terminal.py", "stream.write"): "the printer",
    ("cli/terminal.py", "stream.buffer.write"): "the printer, in a locale without UTF-8",
    ("cli/terminal.py", "click.confirm"): "the printer",
    ("cli/terminal.py", "click.prompt"): "the printer",
    ("cli/cmd_completion.py", "click.echo"): "a script of ours, for a shell",
    ("conformance/checks/log.py", "stream.write"): "a FIFO",
    ("cli/cmd_cp.py", "sys.stdout.buffer.write"): "an archive, never to a terminal",
    ("cli/cmd_save.py", "sys.stdout.buffer.write"): "an archive, never to a terminal",
    ("cli/run_output.py", "click.style"): "the name of a stream",
}
HOSTILE = "a\x1b[1A\x1b[2Kb\x07\x9b2K\u202ec\u200bd\x7f\r"
SHOWN = r"a\u001b[1A\u001b[2Kb\u0007\u009b2K\u202ec\u200bd\u007f\u000d"


def calls(path: Path) -> set[str]:
    """What a module calls, by dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
        if isinstance(node, ast.ImportFrom) and node.module in ("click", "sys"):
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return found


def test_s04_nothing_prints_but_the_printer() -> None:
    found = {
        (str(path.relative_to(SOURCE)), name)
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] != "kit"  # for authors of plugins; runs in plugins
        for name in calls(path) & PRINTING
    }
    assert found == set(ALLOWED), "print by cli/terminal.py, which escapes"


def test_s04_whatever_is_printed_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(HOSTILE)
    terminal.say("x", HOSTILE, err=True)
    terminal.warn(f"{HOSTILE}\nmoorage: forged")
    terminal.say_lines(f"{HOSTILE}\nsecond")
    terminal.table(("HEAD", "B"), [(HOSTILE, "x\ny"), (terminal.styled(HOSTILE, "red"), "")])
    terminal.print_json({"a": HOSTILE})
    out, err = capsys.readouterr()
    assert err == f"x{SHOWN}\nmoorage: warning: {SHOWN}\n  moorage: forged\n"
    lines = out.splitlines()
    assert lines[0] == SHOWN
    assert lines[1:3] == [SHOWN, "second"]
    assert lines[4].split() == [SHOWN, r"x\u000ay"]
    assert lines[5].rstrip() == SHOWN
    assert all(" " <= each <= "~" or each == "\n" for each in out)


def test_s04_colours_are_passed_on_only_where_they_are_enabled(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("\x1b[31mred\x1b[0m\x1b[2J", colours=True)
    terminal.say("\x1b[31mred\x1b[0m")
    assert capsys.readouterr().out == "\x1b[31mred\x1b[0m\\u001b[2J\x1b[0m\n\\u001b[31mred\\u001b[0m\n"


@pytest.mark.parametrize("kind", [LineFormatter, JournalFormatter])
def test_s04_log_lines_are_escaped_and_none_passes_for_another(kind: type[logging.Formatter]) -> None:
    record = logging.LogRecord("moorage", logging.WARNING, "", 1, "plugin says %s", (f"{HOSTILE}\n<2>forged",), None)
    first, second = kind("moorage: %(message)s").format(record).split("\n")
    assert first.removeprefix("<4>") == f"moorage: plugin says {SHOWN}"
    assert second.removeprefix("<4>") == "  <2>forged"


def test_s04_a_failure_is_escaped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["moorage", "--host", f"/no/{HOSTILE}\nmoorage: forged", "ls"])
    with pytest.raises(SystemExit):
        main()
    err = capsys.readouterr().err
    assert SHOWN in err
    assert "\n  moorage: forged" in err
    assert "\x1b" not in err
