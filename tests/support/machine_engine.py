"""An engine on a machine within this one: `moorage serve` with its usual directories, beside `moorage run`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from support.foreground import Machine, environment, wait_until
from support.limits import limit

EXEC_ROOT = "/run/moorage"
ROOT = "/var/tmp/moorage"


class MachineEngine:
    """An engine on a machine. At the end of its block it is taken down, with its data."""

    def __init__(self, machine: Machine, log: Path, *options: str) -> None:
        """``options``: those of the program itself."""
        self.machine, self.log, self._options = machine, log, options
        self.child: subprocess.Popen[bytes] | None = None

    def words(self, *words: str | Path) -> list[str]:
        """The words of a `moorage` command for it."""
        directories = [f"MOORAGE_ROOT={ROOT}", f"MOORAGE_EXEC_ROOT={EXEC_ROOT}"]
        return ["env", *directories, sys.executable, "-m", "moorage", *map(str, words)]

    def start(self) -> Self:
        """Start it, and return when it answers."""
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.machine.command(*self.words(*self._options, "serve")),
                stdout=log,
                stderr=log,
                env=environment(None),
            )
        wait_until(lambda: self.run("ls").returncode == 0, "the engine answers", limit(60))
        return self

    def kill(self) -> None:
        """Kill the engine; plugins run on."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()

    def run(self, *words: str | Path) -> Any:
        """Run a command for it until it exits."""
        return subprocess.run(
            self.machine.command(*self.words("--host", f"unix://{EXEC_ROOT}/moorage.sock", *words)),
            capture_output=True, text=True, timeout=limit(60), env=environment(None), check=False,
        )  # fmt: skip

    def ok(self, *words: str | Path) -> str:
        """Run a command that must work; its output."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stderr} {self.log.read_text()[-3000:]}"
        return str(done.stdout)

    def lines(self, name: str) -> list[str]:
        """The output of a plugin."""
        return [line.rpartition(" | ")[2] for line in self.ok("logs", name).splitlines()]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        down = self.run("down")
        if self.child is not None:
            self.child.wait(limit(60))
        self.machine.do(f"rm -rf {ROOT}")
        if kind is None:
            assert down.returncode == 0, down.stderr


def specs_of(machine: Machine, containerd: str, namespace: str = "plugins.moby") -> dict[str, Any]:
    """The OCI runtime specs that a containerd on the machine stores, by container."""

    def ctr(*words: str) -> str:
        command = machine.command("ctr", "--address", containerd, "--namespace", namespace, "containers", *words)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return {id: json.loads(ctr("info", id))["Spec"] for id in ctr("list", "--quiet").split()}
