"""A page of the documents as a reader walks through it: saves its files, types its commands, compares what it shows.

In a page, "Save this as `NAME`:" precedes a block that is a file; a block of ``sh`` is commands, one a line, which
may set variables for those after them; the block of ``text`` after it has lines that they print, in order, where ``…``
stands for anything.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import moorage
from support.foreground import wait_until
from support.limits import limit

_BLOCK = re.compile(r"(?:^Save this as `(?P<name>[^`]+)`:\n+)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
_TIMEOUT_SECONDS = limit(60.0)


@dataclass(frozen=True)
class Step:
    """A file to save (``name``), a command, or lines that are shown (``kind`` is file, command, shows)."""

    kind: str
    text: str
    name: str = ""


def steps(text: str) -> Iterator[Step]:
    """What a reader does and sees, in the order of the page."""
    for block in _BLOCK.finditer(text):
        if block["name"]:
            yield Step("file", block["text"], block["name"])
        elif block["kind"] == "sh":
            lines = block["text"].replace("\\\n", " ").splitlines()
            yield from (Step("command", line) for line in lines if line.strip())
        elif block["kind"] == "text":
            yield Step("shows", block["text"])


def saved_files(text: str) -> dict[str, str]:
    """The files that a reader saves, by name."""
    return {each.name: each.text for each in steps(text) if each.kind == "file"}


def commands(text: str) -> list[str]:
    """The commands of a page, without comments."""
    return [step.text.partition("  #")[0].strip() for step in steps(text) if step.kind == "command"]


def typed_lines(text: str) -> list[str]:
    """The lines of indented blocks, which a reader types; without comments."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [line.partition("  #")[0].strip() for line in plain.splitlines() if line.startswith("    ")]


class Reader:
    """A reader who does what a page says, in a directory of their own, on an engine with unusual paths."""

    def __init__(self, home: Path, paths: Mapping[str, Path | str], environment: Mapping[str, str]) -> None:
        """``paths``: what pages call /run/moorage and the like, and where that is here; also references."""
        program = home / "bin/moorage"
        program.parent.mkdir(parents=True)
        source = Path(moorage.__file__).parents[1]
        program.write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -m moorage "$@"\n')
        program.chmod(0o755)
        self.home, self.paths = home, paths
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MOORAGE_", "DOCKER_"))},
            **environment,
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "LC_ALL": "C.UTF-8",
        }
        self.said = self._before = ""

    def walk(self, text: str, *, leave_out: tuple[str, ...] = ()) -> list[str]:
        """Do everything in order; the commands. One that ends in & is what the test has started by itself."""
        done: list[str] = []
        todo = list(steps(text))
        for at, step in enumerate(todo):
            if step.kind == "file":
                (self.home / step.name).write_text(step.text)
            elif step.kind == "shows":
                if done and done[-1].startswith("moorage logs"):  # output comes to the log when it comes
                    self._poll(done[-1], step.text)
                assert self._misses(step.text) == [], f"after {done[-3:]} this is printed:\n{self.said}"
            elif not step.text.endswith("&") and step.text not in leave_out:
                if at == 0 or todo[at - 1].kind != "command":
                    self.said = ""
                shown = todo[at + 1].text if at + 1 < len(todo) and todo[at + 1].kind == "shows" else ""
                self.type(step.text, shown)
                done.append(step.text)
        return done

    def _poll(self, command: str, shown: str) -> None:
        """Repeat a command that only reads, until it shows this or the timeout is over."""
        before, deadline = self._before, time.monotonic() + _TIMEOUT_SECONDS
        while self._misses(shown) and time.monotonic() < deadline:
            self.said = before
            self.type(command)

    def type(self, command: str, shown: str = "") -> None:
        """Run one command in a shell. One whose comment names Ctrl-C is stopped so when it has printed enough."""
        output, value = self.home / ".output", self.home / ".value"
        variable = re.match(r"([A-Z]+)=\S*", command)
        keep = f'\nprintf %s "${variable[1]}" >{value}' if variable else ""
        with output.open("w") as sink:
            child = subprocess.Popen(
                ["bash", "-euc", self._moved(command) + keep],
                cwd=self.home, env=self.environment, stdout=sink, stderr=sink, start_new_session=True,
            )  # fmt: skip
        self._before = self.said
        before, is_endless = self.said, "# Ctrl-C" in command

        def has_said() -> bool:
            self.said = before + self._usual(output.read_text())
            return child.poll() is not None or (not self._misses(shown) and len(self.said) > len(before))

        try:
            if is_endless:
                wait_until(has_said, f"{command} says\n{shown}", _TIMEOUT_SECONDS)
                os.killpg(child.pid, signal.SIGINT)
            status = child.wait(_TIMEOUT_SECONDS)
        finally:
            if child.poll() is None:
                _end(child)
        self.said = before + self._usual(output.read_text())
        assert status == (130 if is_endless else 0), f"{command} ended with {status}:\n{self.said}"
        if variable:
            self.environment[variable[1]] = value.read_text()

    def _misses(self, shown: str) -> list[str]:
        """Lines that were to be printed, in this order, and were not."""
        printed = iter(self.said.splitlines())
        return [
            line for line in shown.splitlines()
            if not any(re.fullmatch(_pattern(line), each.strip()) for each in printed)
        ]  # fmt: skip

    def _moved(self, text: str) -> str:
        for usual, here in self.paths.items():
            text = text.replace(usual, str(here))
        return text

    def _usual(self, text: str) -> str:
        for usual, here in self.paths.items():
            text = text.replace(str(here), usual)
        return text


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Of a failed walk: gently first, so that what it began is undone."""
    try:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(_TIMEOUT_SECONDS / 2)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _pattern(line: str) -> str:
    words = [re.escape(word).replace("…", ".*") for word in line.split()]
    return r"\s*".join(words)
