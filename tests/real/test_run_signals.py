"""`moorage run` interrupted, killed, or with its parts killed: nothing is left after it, or at least after the next."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import leftovers
from support.foreground import (
    ANSWER,
    EARLY,
    FOREVER,
    LISTEN,
    Machine,
    Run,
    containerd_has_loaded,
    environment,
    make_plugin,
    wait_until,
)
from support.kills import stop
from support.limits import limit

pytestmark = pytest.mark.real

DEAF = "signal.signal(15, lambda *_: print('no', flush=True))\nprint('up', flush=True)\n"
"""Part of a plugin that does not end by SIGTERM."""

QUICK = ["/bin/sh", "-c", "exit 0"]


def only(pids: list[int]) -> int:
    (pid,) = pids
    return pid


def started(machine: Machine, plugin: Path, *options: str) -> Run:
    """A run whose plugin has written something, and whose command knows that it is started."""
    run = machine.start(*options, plugin)
    run.until("output")
    run.until("started")
    machine.note()
    return run


# ---- signals to the command


def test_l01_a_hangup_stops_it_too(machine: Machine, tmp_path: Path) -> None:
    run = machine.start(make_plugin(tmp_path / "it", ANSWER))
    run.until("ready")
    assert run.end(signal.SIGHUP) == 129
    assert run.exit["code"] == 7


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGUSR1, signal.SIGPWR, signal.SIGRTMIN + 2])
def test_d14_every_signal_that_terminates_stops_it_too(machine: Machine, tmp_path: Path, number: int) -> None:
    run = machine.start(make_plugin(tmp_path / "it", ANSWER))
    run.until("ready")
    assert run.end(number) == 128 + number
    assert run.exit["code"] == 7


def test_m06_a_second_interrupt_kills_a_plugin_that_ignores_the_first(machine: Machine, tmp_path: Path) -> None:
    run = started(machine, make_plugin(tmp_path / "it", LISTEN + DEAF + "while True: " + FOREVER))
    run.child.send_signal(signal.SIGTERM)
    wait_until(lambda: "no" in run.lines, "the plugin's word that it got SIGTERM")
    began_at = time.monotonic()
    assert run.end(signal.SIGINT) == 143  # the first signal counts
    assert time.monotonic() - began_at < limit(10), "it waited for the stop time-out"
    assert (run.exit["code"], run.exit["signal"]) == (137, "SIGKILL")
    assert run.all("gone")


def test_m04_an_interrupt_while_a_plugin_is_stopped_that_was_not_ready(machine: Machine, tmp_path: Path) -> None:
    program = LISTEN.partition("s = ")[0] + DEAF + "while True: " + FOREVER
    run = started(machine, make_plugin(tmp_path / "it", program), "--timeout", f"{limit(0.2):g}")
    wait_until(lambda: "no" in run.lines, "the plugin's word that it got SIGTERM")
    run.child.send_signal(signal.SIGINT)
    wait_until(lambda: run.lines.count("no") == 2, "another SIGTERM")
    assert run.end(signal.SIGINT) == 130
    assert run.exit["signal"] == "SIGKILL"
    assert "Traceback" not in run.stderr


def test_l01_an_interrupt_at_any_instant_of_the_start_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ANSWER, pidHost=True)  # not process 1, so no signal is ignored
    for instant in range(5):
        run = machine.start(plugin)
        run.until("starting")
        time.sleep(instant * 0.1)  # the instant is what is tried
        assert run.end(signal.SIGINT) == 130, run.stderr
        assert "Traceback" not in run.stderr
        machine.assert_nothing_left()


# ---- no reader, no writer


def shell(machine: Machine, text: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script with our command as $MOORAGE and the words as its arguments."""
    return subprocess.run(
        machine.command("bash", "-c", text, "bash", *words),
        env=environment({"MOORAGE": f"{sys.executable} -m moorage"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit(60),
    )


CHATTER = "while True:\n print('x' * 99, flush=True)\n"


@pytest.mark.parametrize("option", ["", "--json"])
def test_l01_a_reader_that_closes_its_end_stops_it(machine: Machine, tmp_path: Path, option: str) -> None:
    plugin = make_plugin(tmp_path / "it", LISTEN + CHATTER)
    done = shell(machine, f'$MOORAGE {option} run "$1" | head -n 3; exit ${{PIPESTATUS[0]}}', plugin)
    assert done.returncode == 141
    assert len(done.stdout.splitlines()) == 3
    assert all(line.startswith(("moorage: starting", "moorage: socket")) for line in done.stderr.splitlines())


def test_l01_a_full_disk_below_standard_output_ends_it(machine: Machine, tmp_path: Path) -> None:
    done = shell(machine, '$MOORAGE run "$1" > /dev/full', make_plugin(tmp_path / "it", LISTEN + CHATTER))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "moorage: No space left on device"


def test_l01_an_interrupt_is_handled_while_the_output_is_not_read(machine: Machine, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        plugin = make_plugin(tmp_path / "it", LISTEN + CHATTER)
        child = subprocess.Popen(
            machine.command(sys.executable, "-m", "moorage", "run", plugin),
            env=environment(None),
            stdout=writer,
            stderr=subprocess.PIPE,
        )
        with child:
            pause = time.monotonic() + limit(20)
            os.set_blocking(writer, False)
            while _has_room(writer):
                assert time.monotonic() < pause
                time.sleep(0.01)
            os.set_blocking(writer, True)
            machine.note()
            child.send_signal(signal.SIGINT)
            assert child.wait(limit(30)) == 130
    finally:
        os.close(reader)
        os.close(writer)


def _has_room(pipe: int) -> bool:
    return bool(select.select([], [pipe], [], 0)[1])


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_l01_closed_standard_streams_are_no_trouble(machine: Machine, tmp_path: Path, closed: str) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    done = shell(machine, f'$MOORAGE run "$1" {closed}', plugin)
    assert done.returncode == 3
    assert ("out" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert "Traceback" not in done.stderr


def test_l01_a_removed_working_directory_matters_only_to_relative_paths(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", QUICK)
    text = 'mkdir "$1/gone" && cd "$1/gone" && rmdir "$1/gone" && $MOORAGE run "$2"'
    assert shell(machine, text, tmp_path, plugin).returncode == EARLY
    done = shell(machine, text, tmp_path, "it")
    assert done.returncode == 1
    assert done.stderr == "moorage: cannot run it: the current directory is not there any more\n"


# ---- kill -9


def left_of(machine: Machine, name: str) -> list[str]:
    return [line for line in machine.left() if name in line]


def sweep(machine: Machine, tmp_path: Path) -> Run:
    """A run after a killed one; afterwards there are no leftovers of either."""
    machine.note()
    plugin = tmp_path / "quick"
    run = machine.start(plugin if plugin.exists() else make_plugin(plugin, QUICK))
    assert run.end() == EARLY, run.stderr
    machine.assert_nothing_left()
    return run


@pytest.mark.parametrize("event", ["starting", "started", "output", "ready"])
def test_l01_after_kill_9_the_next_run_removes_what_is_left(machine: Machine, tmp_path: Path, event: str) -> None:
    capabilities = {"capabilities": ["CAP_SYS_ADMIN"]}
    program = ANSWER.replace("s.listen()", "os.system('mount -t tmpfs none /mnt'); print('up', flush=True); s.listen()")
    run = machine.start(make_plugin(tmp_path / "it", program, propagatedMount="/mnt", linux=capabilities))
    run.until(event)
    run.end(signal.SIGKILL)
    if event == "ready":
        machine.note()
        assert all(left_of(machine, kind) for kind in ("process", "mount", "cgroup", "file")), (
            "there is enough to remove"
        )
    assert ("removing what a killed run has left in /run/moorage-run-" in sweep(machine, tmp_path).stderr) or (
        event == "starting"
    )


def test_l01_after_kill_9_at_any_instant_the_next_run_removes_what_is_left(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ANSWER)
    draw = random.Random(int(os.environ.get("MOORAGE_TEST_SEED", "1"))).uniform
    for _ in range(5):
        run = machine.start(plugin)
        run.until("starting")
        time.sleep(draw(0, 0.5))  # the instant is what is tried
        run.end(signal.SIGKILL)
        sweep(machine, tmp_path)


def test_l01_kill_9_in_the_middle_of_the_clean_up(machine: Machine, tmp_path: Path) -> None:
    run = machine.start(make_plugin(tmp_path / "it", ANSWER))
    run.until("ready")
    run.child.send_signal(signal.SIGINT)
    run.until("exit")
    machine.note()
    run.end(signal.SIGKILL)
    sweep(machine, tmp_path)


@pytest.mark.parametrize("dead", [("containerd",), ("containerd-shim",), ("containerd", "containerd-shim")])
def test_l01_kill_9_of_the_run_and_its_parts(machine: Machine, tmp_path: Path, dead: tuple[str, ...]) -> None:
    run = started(machine, make_plugin(tmp_path / "it", LISTEN + "print('up', flush=True)\n" + FOREVER))
    stop(run.child.pid)  # so that it starts nothing again
    for pid in [pid for name in dead for pid in machine.processes(name)]:
        os.kill(pid, signal.SIGKILL)
    run.end(signal.SIGKILL)
    sweep(machine, tmp_path)


def test_l01_kill_9_of_its_containerd_is_repaired_and_the_plugin_keeps_running(
    machine: Machine, tmp_path: Path
) -> None:
    go = "while not os.path.exists('/go'): time.sleep(.01)\nprint('on', flush=True)\n"
    run = started(machine, make_plugin(tmp_path / "it", LISTEN + "print('up', flush=True)\n" + go + FOREVER))
    plugin = only(machine.plugins())
    first = [pid for pid in machine.processes("containerd") if b"--config" in leftovers.command_line(pid)]
    words = leftovers.command_line(only(first))
    state = Path(os.fsdecode(words[words.index(b"--config") + 1])).parent
    os.kill(only(first), signal.SIGKILL)
    wait_until(lambda: "starting it again" in run.stderr, "our word that containerd ended")
    (machine.inside(run.until("started")["root"]) / "go").touch()
    wait_until(lambda: "on" in run.lines, "more output of the plugin")
    assert machine.plugins() == [plugin]
    wait_until(lambda: containerd_has_loaded(machine.inside(state)), "the next containerd is there")
    assert run.end(signal.SIGINT) == 130
    assert run.exit["code"] == 7


def test_l01_kill_9_of_its_containerd_and_an_interrupt_at_once(machine: Machine, tmp_path: Path) -> None:
    run = started(machine, make_plugin(tmp_path / "it", LISTEN + "print('up', flush=True)\n" + FOREVER))
    for pid in machine.processes("containerd"):
        if b"--config" in leftovers.command_line(pid):
            os.kill(pid, signal.SIGKILL)
    assert run.end(signal.SIGINT) == 130
    assert run.exit["code"] == 7, "SIGTERM did not arrive once containerd was back"
    assert run.all("gone")


def test_l01_kill_9_of_the_shim_is_reported_as_an_exit_without_a_code(machine: Machine, tmp_path: Path) -> None:
    run = started(machine, make_plugin(tmp_path / "it", LISTEN + "print('up', flush=True)\n" + FOREVER))
    os.kill(only(machine.processes("containerd-shim")), signal.SIGKILL)
    assert run.end() == 1
    assert (run.exit["code"], run.exit["signal"]) == (None, None)
    assert run.all("gone")


def test_m06_a_shim_that_hangs_is_reported_and_killed(machine: Machine, tmp_path: Path) -> None:
    run = started(machine, make_plugin(tmp_path / "it", LISTEN + "print('up', flush=True)\n" + FOREVER))
    stop(only(machine.processes("containerd-shim")))
    run.child.send_signal(signal.SIGINT)
    assert run.end(signal.SIGTERM) == 1
    failure = "cannot stop the plugin: containerd does not report that its process exited, 10 s after SIGKILL"
    assert f"moorage: {failure}" in run.stderr


def test_l01_a_killed_run_whose_shim_hangs_is_removed(machine: Machine, tmp_path: Path) -> None:
    run = started(machine, make_plugin(tmp_path / "it", LISTEN + "print('up', flush=True)\n" + FOREVER))
    stop(only(machine.processes("containerd-shim")))
    run.end(signal.SIGKILL)
    sweep(machine, tmp_path)


# ---- what a sweep touches


def test_l01_a_cleanup_leaves_foreign_files_alone(machine: Machine, tmp_path: Path) -> None:
    machine.do("""
        cd /run
        mkdir moorage-run-of-user && chown 1000 moorage-run-of-user
        touch moorage-run-file
        mkdir elsewhere && touch elsewhere/file && ln -s elsewhere moorage-run-link
        mkdir -m 777 moorage-run-open
        mkdir -p /var/tmp/other && touch /var/tmp/other/file
        mkdir moorage-run-astray && ln -s /var/tmp/other moorage-run-astray/data
        mkdir moorage-run-stolen && ln -s /var/tmp/moorage-run-stolen moorage-run-stolen/data
        mkdir /var/tmp/moorage-run-stolen && touch /var/tmp/moorage-run-stolen/file
        chown 1000 /var/tmp/moorage-run-stolen
        mkdir moorage-run-begun  # killed before it was locked
    """)
    plugin = make_plugin(tmp_path / "quick", QUICK)
    run = machine.start(plugin)
    assert run.end() == EARLY, run.stderr
    left = {path.name for path in machine.inside("/run").iterdir()}
    assert left == {"moorage-run-of-user", "moorage-run-file", "elsewhere", "moorage-run-link", "moorage-run-open"}
    preserved = ("/run/elsewhere/file", "/var/tmp/other/file", "/var/tmp/moorage-run-stolen/file")
    assert all(machine.inside(path).exists() for path in preserved)
    machine.do("rm -r /run/* /var/tmp/*")


def test_l01_a_sweep_does_not_touch_a_run_that_lives(machine: Machine, tmp_path: Path) -> None:
    run = machine.start(make_plugin(tmp_path / "it", ANSWER))
    run.until("ready")
    other = machine.start(make_plugin(tmp_path / "quick", QUICK))
    assert other.end() == EARLY
    assert run.accepts()
    assert run.end(signal.SIGINT) == 130


def test_l01_a_sweep_that_takes_a_new_directory_for_a_leftover_only_delays_the_run(machine: Machine) -> None:
    program = """
import fcntl, os, threading
from pathlib import Path
from moorage.foreground.temporary_directories import create, lock_orphans
state, data = Path("/run/moorage-run-it"), Path("/var/tmp/moorage-run-it")
state.mkdir()  # as the run has, which is about to lock it
(swept,) = lock_orphans()
made = []
run = threading.Thread(target=lambda: made.append(create(state, data, "id")))
run.start()
run.join(0.1)  # it waits for the sweep; were it not to wait, it would have failed by now
assert run.is_alive() and not made
state.rmdir()
swept.unlock()
run.join(10)
assert os.readlink(state / "data") == str(data) and data.is_dir()
assert lock_orphans() == []  # it is locked
made[0].unlock()
assert [(each.data, each.id) for each in lock_orphans()] == [(data, "id")]
"""
    command = machine.command(sys.executable, "-c", program)
    done = subprocess.run(command, env=environment(None), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    machine.do("rm -r /run/* /var/tmp/*")
