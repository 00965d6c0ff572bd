"""A virtual machine that `scripts/vm` started, driven as its operator would: commands over ssh, power on and off."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.limits import limit

SCRIPT = Path(__file__).parents[2] / "scripts/vm"
CHECKOUT = "/srv/moorage"
"""Where the commit under test is in the machine, with its environment and examples."""

_LIMIT_SECONDS = limit(180.0)  # against hangs


class Machine:
    """The machine that the environment variable MOORAGE_VM_NAME names, running, with this commit's package."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.release = int(name.partition("-")[0])
        """Of Debian: 12 or 13."""

    def run(self, command: str, *, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root and return what it printed.

        Raises: AssertionError with all that it printed, where `check` and it does not exit with 0.
        """
        done = self._vm("run", command, input=input)
        if check and done.returncode != 0:
            raise AssertionError(f"{command}\nexited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def output(self, command: str) -> str:
        """What a command printed, without trailing white space. Raises: AssertionError as `run` does."""
        return self.run(command).stdout.rstrip()

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Make a file, and the directories above it."""
        quoted = shlex.quote(path)
        self.run(f"install -D -m {mode} /dev/stdin {quoted}", input=text)

    def wait_until(self, condition: Callable[[], object], what: str, within: float = _LIMIT_SECONDS) -> None:
        """Ask again and again. Raises: AssertionError when it has not become true `within` so many seconds."""
        end = time.monotonic() + within
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not within {within:g} s: {what}\n{self.journal()}")
            time.sleep(0.5)

    def journal(self, *options: str, unit: str = "moorage.service", lines: int = 50) -> str:
        """The last messages of a unit since the machine started."""
        return self.run(f"journalctl --no-pager -b -u {unit} -n {lines} {shlex.join(options)}", check=False).stdout

    def reboot(self) -> None:
        """Restart it in good order."""
        self._vm("down")
        self.boot()

    def lose_power(self) -> None:
        """Switch it off without a shutdown, as a power cut does. Writes that reached the virtual disk persist."""
        self._vm("kill")

    def boot(self) -> None:
        """Start it, and wait until it answers. Raises: AssertionError when it does not."""
        done = self._vm("boot")
        assert done.returncode == 0, done.stderr

    def _vm(self, *words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, "-m", self.name, *words],
            input=input if input is not None else "",
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )


def inspect(machine: Machine, name: str = "hello", *, call: str = "moorage") -> Any:
    """What `inspect` says of a plugin: the key ``Moorage``, and its id. ``call`` names the engine."""
    [found] = json.loads(machine.output(f"{call} inspect {name}"))
    return found["Moorage"] | {"Id": found["Id"]}


def from_environment() -> Machine:
    """The machine that the tests are for. Raises: AssertionError where none is named."""
    name = os.environ.get("MOORAGE_VM_NAME")
    assert name, "these tests drive a virtual machine: run them with `scripts/vm test machines`"
    return Machine(name)
