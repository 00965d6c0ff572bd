"""Real shells that complete a line, on a terminal of their own."""

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.limits import limit

TIMEOUT = limit(20.0)
PROMPT = "ready> "
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x07")


class Terminal:
    """A shell in a pseudo terminal: what is typed, what is shown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def until(self, pattern: str) -> str:
        """Read until this is shown; its first group, or all that was shown up to it. The rest is buffered."""
        deadline = time.monotonic() + TIMEOUT
        while (found := re.search(pattern, self._shown)) is None:
            readable, _, _ = select.select([self._descriptor], [], [], max(deadline - time.monotonic(), 0.0))
            assert readable, f"{pattern!r} is not shown: {self._shown!r}"
            self._shown = _ESCAPES.sub("", self._shown + os.read(self._descriptor, 65536).decode(errors="replace"))
        before, self._shown = self._shown[: found.end()], self._shown[found.end() :]
        return found[1] if found.groups() else before

    def completed(self, line: str) -> str:
        """The line after a tabulator. The shell says it: what the screen shows has been broken and drawn again."""
        self.type(f"{line}\t\x01print-line '\x05'\r")
        said = self.until("line=(.*?)=end\r\n")
        self.until(PROMPT)
        return said


@contextmanager
def terminal(command: list[str], environment: dict[str, str]) -> Iterator[Terminal]:
    """The shell, ended with the block."""
    controller_end, terminal_end = pty.openpty()
    child = subprocess.Popen(
        command, stdin=terminal_end, stdout=terminal_end, stderr=terminal_end, env=environment, start_new_session=True
    )
    os.close(terminal_end)
    try:
        yield Terminal(controller_end)
    finally:
        child.kill()
        child.wait()
        os.close(controller_end)


def bash(rc: Path, source: str) -> list[str]:
    """An interactive bash that has read the completions and nothing else."""
    rc.write_text(f"PS1='{PROMPT}'\nprint-line() {{ printf 'line=%s=end\\n' \"$1\"; }}\n{source}\n")
    return ["bash", "--noprofile", "--rcfile", str(rc), "-i"]


def zsh(folder: Path, source: str) -> dict[str, str]:
    """Where an interactive zsh finds the completions in its function path, and nothing else: for its environment."""
    functions = folder / "functions"
    functions.mkdir()
    (functions / "_moorage").write_text(source)
    (folder / ".zshrc").write_text(
        f"PS1='{PROMPT}'; unsetopt zle_bracketed_paste prompt_sp; fpath=({functions} $fpath)\n"
        "bindkey -e; autoload -Uz compinit; compinit -u -D\n"
        "print-line() { printf 'line=%s=end\\n' \"$1\"; }\n"
    )
    return {"ZDOTDIR": str(folder)}
