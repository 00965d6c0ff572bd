"""Row S08: a local user whose processes are called as ours are; each attack succeeded at 70b8c43."""

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
from moorage.containerd._shims import find_shims
from moorage.containerd.supervisor import PrivateContainerd
from moorage.engine.doctor_engine import examine_engine
from moorage.engine.remains import end_processes
from moorage.host.process_identity import has_users, is_trusted
from moorage.serving import ServeOptions, take_down
from moorage.timeouts import DEFAULT
from support.engines import EngineProcess, engine
from support.foreground import wait_until
from support.unprivileged import USER

pytestmark = [pytest.mark.needs("static-cc")]

# called $0, with the words that follow, and with this name for the kernel; it is one process for as long as it lives
STRANGER = 'name=$1; shift; exec -a "$0" bash -c \'echo "$0" > /proc/$$/comm; read -r _ <&3\' "$name" "$@"'


@contextmanager
def stranger(name: str, *words: str, uid: int = USER) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a user without privileges that is called like one of ours."""
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
def ours(tmp_path: Path) -> Iterator[PrivateContainerd]:
    made = PrivateContainerd(tmp_path / "root", tmp_path / "state")
    yield made
    anyio.run(made.stop)
    assert made.find() is None


@pytest.mark.parametrize("uid", [USER, 0])
def test_s08_a_stranger_is_never_taken_for_our_containerd(ours: PrivateContainerd, uid: int) -> None:
    ours.state.mkdir()
    with stranger("containerd", "--config", str(ours.state / "config.toml"), uid=uid) as theirs:
        assert ours.find() is None
        (ours.state / "pid").write_text(f"{theirs.pid}\n")  # of a boot before this one, say
        assert ours.find() is None
        pid = anyio.run(ours.ensure)
        assert pid not in (0, theirs.pid)
        assert ours.find() == pid
        (ours.state / "pid").write_text(f"{theirs.pid}\n")
        assert anyio.run(PrivateContainerd(ours.root, ours.state).ensure) == pid
        os.kill(pid, signal.SIGKILL)  # and it is started again
        os.waitpid(pid, 0)
        again = anyio.run(ours.ensure)
        assert again not in (pid, theirs.pid)
        anyio.run(ours.stop)
        assert ours.find() is None


def test_s08_our_containerd_is_known_without_its_pid_file_and_its_shims_are_not_it(ours: PrivateContainerd) -> None:
    pid = anyio.run(ours.ensure)
    (ours.state / "pid").unlink()
    assert PrivateContainerd(ours.root, ours.state).find() == pid
    assert is_trusted(pid, ("containerd",))
    with stranger("containerd", "x") as theirs:
        assert not is_trusted(theirs.pid, ("containerd", "bash"))
        assert has_users(theirs.pid, USER)


def test_s08_a_containerd_of_an_earlier_version_is_taken_over(ours: PrivateContainerd) -> None:
    pid = anyio.run(ours.ensure)
    (ours.state / "alive").rename(ours.state / "elsewhere")  # it locked nothing
    assert PrivateContainerd(ours.root, ours.state).find() == pid
    (ours.state / "elsewhere").rename(ours.state / "alive")


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
    with engine(tmp_path) as made, stranger("moorage", "serve") as theirs:
        lock, pid = made.root / "lock", (made.root / "lock").read_text()
        lock.write_text(f"{theirs.pid}\n")
        options = ServeOptions(made.root, made.exec_root, timeouts=replace(DEFAULT, cleanup=1.0))
        with pytest.raises(errors.Unavailable, match="cannot end the engine"):
            anyio.run(take_down, options)
        assert made.info()["Moorage"]["Problem"] == ""
        lock.write_text(pid)


def test_s08_a_stranger_is_no_dockerd_for_doctor(tmp_path: Path) -> None:
    made = EngineProcess(tmp_path)
    with stranger("dockerd", "--containerd", "/run/containerd/containerd.sock") as theirs:
        found = list(examine_engine(made.root, made.socket, dict))
    assert not any(f"pid {theirs.pid}" in each.text for each in found)
