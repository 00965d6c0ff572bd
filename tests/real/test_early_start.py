"""containerd starts before the engine is imported, under the engine's own locks and checks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine, processes_below
from support.foreground import environment, wait_until
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


def serve(house: EngineProcess, *options: str) -> "subprocess.Popen[bytes]":
    """``moorage serve``, whose log is that of the engine."""
    directories = ("--root", str(house.root), "--exec-root", str(house.exec_root))
    files = ("--publish-directory", str(house.published), "--podman-config", str(house.podman_config))
    with house.log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "moorage", "serve", *directories, *files, *options],
            env=environment(None),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_for_line(house: EngineProcess, text: str) -> None:
    wait_until(lambda: text in house.log.read_text(), f"the log has {text!r}", limit(30))


def test_i17_containerd_starts_before_the_api_answers_and_plugins_run(tmp_path: Path) -> None:
    with engine(tmp_path) as house:
        house.create("p", config())
        house.enable("p")
        house.down()
        house.log.write_text("")
        house.child = serve(house)
        house.wait_until(lambda: house.state("p") == "ready", "it is ready")
        lines = house.log.read_text()
        assert lines.index("started containerd, pid") < lines.index("the API listens")
        assert lines.count("started containerd, pid") == 1
        containerds = [pid for pid in processes_below(house.exec_root) if is_containerd(pid)]
        assert len(containerds) == 1
        house.end(signal.SIGKILL)
        house.child = serve(house)
        house.wait_until(lambda: house.state("p") == "ready", "it is taken over")
        assert [pid for pid in processes_below(house.exec_root) if is_containerd(pid)] == containerds
        os.kill(containerds[0], signal.SIGKILL)  # of an engine that is not its parent
        wait_for_line(house, "starting it again")


@pytest.mark.parametrize(
    "options", [("--grants", "/dev/null"), ("--group", "no-such-group"), ("--runtime", "relative")]
)
def test_i17_an_engine_that_is_refused_leaves_nothing_of_an_early_start(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    with engine(tmp_path) as house:
        house.down()
        house.log.write_text("")
        assert serve(house, *options).wait(limit(30)) == 1
        assert "started containerd, pid" in house.log.read_text()
        assert house.left() == []
        assert not house.exec_root.exists()


def test_i17_a_signal_during_an_early_start_stops_the_engine_as_later(tmp_path: Path) -> None:
    with engine(tmp_path) as house:
        house.create("p", config())
        house.down()
        house.log.write_text("")
        child = serve(house, "--no-live-restore")
        wait_for_line(house, "started containerd, pid")
        child.send_signal(signal.SIGTERM)
        assert child.wait(limit(30)) == 0
        assert "got SIGTERM" in house.log.read_text()
        assert house.left() == []


def is_containerd(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").readlink().name == "containerd"
