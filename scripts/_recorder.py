"""What ``scripts/recording`` runs: real commands in a terminal, and an SVG of what they print, line by line in time.

The engine is a process of its own in temporary directories, and is stopped again. The picture is animated by CSS alone,
so an image element of a page plays it; readers who prefer reduced motion see the last frame. Its ``desc`` element is
the transcript, which ``--check`` compares with a new run after ids, numbers and times are replaced.
"""

import html
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs/images/terminal.svg"
PROGRAM = ROOT / ".venv/bin/moorage"
COLUMNS = 128
PROMPT = "# "

START_SECONDS = 60.0
COMMAND_SECONDS = 60.0
READING_SECONDS = 1.4  # between the output of a command and the next one
TYPING_SECONDS = 0.5  # between a command and its output, besides what it takes

THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 185, 80),
        (210, 153, 34),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
)
TEMPLATE = """<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height}">
<title>A plugin is created, enabled, called, killed and running again</title>
<desc>
TRANSCRIPT</desc>
<!-- Recorded by scripts/recording from a run of the commands; rendered with rich. -->
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
    font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 16px; font-family: Helvetica, Arial, sans-serif; }}
{styles}
ANIMATION</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


@dataclass(frozen=True)
class Line:
    """A line of the terminal, with its escape sequences, and when it was shown, in seconds from the beginning."""

    text: str
    at: float


class Terminal:
    """Runs commands one after another; ``lines`` is what they have shown."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.lines: list[Line] = []
        self._environment = environment
        self.now = 0.5

    def run(self, command: str, answer: str = "") -> str:
        """Run a command, answer its question if it has one, and return its output."""
        self.lines.append(Line(f"\x1b[1m{PROMPT}{command}\x1b[0m", self.now))
        self.now += TYPING_SECONDS
        started = time.monotonic()
        output, status = _run_on_a_terminal(command, answer, self._environment)
        if status != 0:
            raise SystemExit(f"recording: {command} failed with status {status}:\n{output}")
        self.now += time.monotonic() - started
        self.lines += [Line(text, self.now) for text in output.replace("\r", "").splitlines()]
        self.now += READING_SECONDS
        return output


def _run_on_a_terminal(command: str, answer: str, environment: dict[str, str]) -> tuple[str, int]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execvpe("sh", ["sh", "-c", command], environment)
    output = b""
    deadline = time.monotonic() + COMMAND_SECONDS
    try:
        while time.monotonic() < deadline:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # the last process has closed its side
                break
            output += part
            if answer and b"[y/N]" in output:
                os.write(terminal, answer.encode())
                answer = ""
    finally:
        os.close(terminal)
    return output.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def running_engine() -> Iterator[dict[str, str]]:
    """Run an engine in temporary directories during the block; the environment in which commands find it."""
    scratch = Path(tempfile.mkdtemp(prefix="rec-"))
    environment = {
        "HOME": str(scratch),
        "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "TERM": "xterm-256color",
        "COLUMNS": str(COLUMNS),
        "LINES": "40",
        "MOORAGE_ROOT": str(scratch / "lib"),
        "MOORAGE_EXEC_ROOT": str(scratch / "run"),
    }
    with (scratch / "log").open("wb") as log:
        engine = subprocess.Popen([PROGRAM, "serve"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for(lambda: is_running(environment), f"an engine; its log is\n{(scratch / 'log').read_text()}")
        yield environment
    finally:
        stopped = subprocess.run([PROGRAM, "down"], env=environment, capture_output=True, text=True, check=False)
        engine.terminate()
        engine.wait()
        if stopped.returncode != 0:
            raise SystemExit(f"recording: cannot stop the engine in {scratch}:\n{stopped.stderr}")
        shutil.rmtree(scratch)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"recording: no {what}")
        time.sleep(0.1)


def is_running(environment: dict[str, str]) -> bool:
    return subprocess.run([PROGRAM, "ls"], env=environment, capture_output=True, check=False).returncode == 0


def record() -> list[Line]:
    """Run the commands and return what the terminal showed."""
    with running_engine() as environment:
        terminal = Terminal(environment)
        terminal.run("moorage create hello examples/hello-volume", "y\n")
        terminal.run("moorage enable hello")
        terminal.run("moorage ls")
        terminal.run('moorage call hello VolumeDriver.Create \'{"Name": "data"}\'')
        shown = terminal.run("moorage inspect hello | grep -m1 '\"Pid\"'")
        pid = int(re.sub(r"\D", "", shown))
        terminal.run(f"kill -9 {pid}")

        def is_restarted() -> bool:
            output = subprocess.run(
                [PROGRAM, "ls"], env=environment, capture_output=True, text=True, check=False
            ).stdout
            return "SIGKILL" in output and "ready" in output

        wait_for(is_restarted, "restart of the plugin")
        terminal.run("moorage ls")
        terminal.run("moorage logs hello")
        terminal.run("moorage rm --force hello")
        terminal.lines.append(Line(PROMPT, terminal.now))
        return terminal.lines


def transcript(lines: list[Line]) -> str:
    """What was shown, as plain text."""
    return "".join(f"{Text.from_ansi(line.text).plain.rstrip()}\n" for line in lines)


def comparable(text: str) -> list[str]:
    """A transcript without what differs from run to run: ids, numbers, times, widths of columns."""
    text = re.sub(r"\b[0-9a-f]{12}\b", "ID", text)
    text = text.replace("NEXT TRY", "")  # an empty column, which is left out where another one is wide
    text = re.sub(r"\bnow\b|\b(a|an|\d+) \w+ ago\b", "AGO", text)
    text = re.sub(r"\d+ seconds?\b", "TIME", re.sub(r"[\d:.-]+\d", "N", text))
    return [" ".join(line.split()) for line in text.splitlines()]


def draw(lines: list[Line]) -> str:
    """The picture."""
    console = Console(
        record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    for line in lines:
        console.print(Text.from_ansi(line.text), no_wrap=True, crop=True, highlight=False)
    svg = console.export_svg(title="moorage", theme=THEME, code_format=TEMPLATE, unique_id="t")
    steps = [f".l{number} {{ animation-delay: {line.at:.2f}s; }}" for number, line in enumerate(lines)]
    animation = [
        "@keyframes show { from { opacity: 0; } to { opacity: 1; } }",
        "@media (prefers-reduced-motion: no-preference) {",
        "[class*=' l'] { animation: show 1ms both; }",
        *steps,
        "}",
    ]
    svg = re.sub(r'class="(t-r\d+)"([^>]*clip-path="url\(#t-line-(\d+)\)")', r'class="\1 l\3"\2', svg)
    svg = svg.replace("ANIMATION", "\n".join(animation) + "\n")
    return svg.replace("TRANSCRIPT", html.escape(transcript(lines), quote=False))


def stored_transcript() -> str:
    """The transcript in the picture of the repository."""
    return html.unescape(PICTURE.read_text().partition("<desc>\n")[2].partition("</desc>")[0])


def main() -> int:
    """Record and write, or compare."""
    if os.geteuid() != 0:
        raise SystemExit("recording: containers need root")
    lines = record()
    if "--check" not in sys.argv:
        PICTURE.write_text(draw(lines))
        return 0
    if comparable(transcript(lines)) == comparable(stored_transcript()):
        return 0
    print(
        f"recording: the commands print something else: run scripts/recording\n{transcript(lines)}",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
