"""Row S08: a local user whose processes are named like those of the engine; each attack succeeded at 70b8c43."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from moorage import errors
from moorage.client import MoorageClient
from moorage.containerd.shims.processes import find_shims
from moorage.containerd.supervisor import PrivateContainerd
from moorage.daemon import ServeOptions, stop_engine
from moorage.doctor.check import CheckTarget, run_checks
from moorage.doctor.dockerd import DOCKERD_CHECKS
from moorage.host.leftovers import end_processes
from moorage.host.processes import has_users, is_trusted
from moorage.timeouts import DEFAULT
from support.engines import EngineProcess, engine
from support.foreground import wait_until
from support.limits import limit
from support.local_user import USER

pytestmark = [pytest.mark.needs("static-cc")]

# called $0, with the words that follow, and with this name for the kernel; it is one process for as long as it lives
STRANGER = 'name=$1; shift; exec -a "$0" bash -c \'echo "$0" > /proc/$$/comm; read -r _ <&3\' "$name" "$@"'


@contextmanager
def stranger(name: str, *words: str, uid: int = USER) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a user without privileges that is named like one of the engine's."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", f"exec 3<&{reading}; {STRANGER}", name, name[:15], *words],
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        pass_fds=(reading,),
    )
    try:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == name[:15], "it has its name")
        words_of = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        assert words_of[0] == name.encode()
        assert {word.encode() for word in words} <= set(words_of)
        yield process
        assert process.poll() is None, "it was ended"
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[PrivateContainerd]:
    made = PrivateContainerd(tmp_path / "root", tmp_path / "state")
    yield made
    anyio.run(made.stop)
    assert made.find() is None


@pytest.mark.parametrize("uid", [USER, 0])
def test_s08_a_stranger_is_never_taken_for_our_containerd(own: PrivateContainerd, uid: int) -> None:
    own.state.mkdir()
    with stranger("containerd", "--config", str(own.state / "config.toml"), uid=uid) as foreign:
        assert own.find() is None
        (own.state / "pid").write_text(f"{foreign.pid}\n")  # of a boot before this one, say
        assert own.find() is None
        pid = anyio.run(own.ensure)
        assert pid not in (0, foreign.pid)
        assert own.find() == pid
        (own.state / "pid").write_text(f"{foreign.pid}\n")
        assert anyio.run(PrivateContainerd(own.root, own.state).ensure) == pid
        os.kill(pid, signal.SIGKILL)  # and it is started again
        os.waitpid(pid, 0)
        again = anyio.run(own.ensure)
        assert again not in (pid, foreign.pid)
        anyio.run(own.stop)
        assert own.find() is None


def test_s08_our_containerd_is_known_without_its_pid_file_and_its_shims_are_not_it(own: PrivateContainerd) -> None:
    pid = anyio.run(own.ensure)
    (own.state / "pid").unlink()
    assert PrivateContainerd(own.root, own.state).find() == pid
    assert is_trusted(pid, ("containerd",))
    with stranger("containerd", "x") as foreign:
        assert not is_trusted(foreign.pid, ("containerd", "bash"))
        assert has_users(foreign.pid, USER)


def test_s08_a_containerd_of_an_earlier_version_is_taken_over(own: PrivateContainerd) -> None:
    pid = anyio.run(own.ensure)
    (own.state / "alive").rename(own.state / "elsewhere")  # it locked nothing
    assert PrivateContainerd(own.root, own.state).find() == pid
    (own.state / "elsewhere").rename(own.state / "alive")


def test_s08_a_stranger_is_never_taken_for_a_shim() -> None:
    with stranger("containerd-shim-runc-v2", "-namespace", "n", "-id", "i", "-address", "a"):
        assert find_shims("n", "i", "a") == []


def test_s08_a_stranger_is_not_killed_with_the_processes_of_a_run(tmp_path: Path) -> None:
    state = tmp_path / "moorage-run-x"
    with (
        stranger("containerd", "--config", f"{state}/containerd/config.toml"),
        stranger("runc", f"{state}/runtime-root"),
    ):
        end_processes(state, "", 0.0, 1.0)


def test_s08_down_signals_no_process_that_only_the_lock_file_names(tmp_path: Path) -> None:
    with engine(tmp_path) as made, stranger("moorage", "serve") as foreign:
        lock, pid = made.root / "lock", (made.root / "lock").read_text()
        lock.write_text(f"{foreign.pid}\n")
        options = ServeOptions(made.root, made.exec_root, timeouts=replace(DEFAULT, cleanup=limit(1.0)))
        with pytest.raises(errors.Unavailable, match="cannot end the engine"):
            anyio.run(stop_engine, options)
        assert made.info()["Moorage"]["Problem"] == ""
        lock.write_text(pid)


def test_s08_a_stranger_is_no_dockerd_for_doctor(tmp_path: Path) -> None:
    made = EngineProcess(tmp_path)
    with stranger("dockerd", "--containerd", "/run/containerd/containerd.sock") as foreign:
        target = CheckTarget(made.root, made.exec_root, made.socket, MoorageClient(str(made.socket)).info)
        found = list(run_checks(DOCKERD_CHECKS, target))
    assert not any(f"pid {foreign.pid}" in each.text for each in found)
