"""Row L01, `moorage run`, and what it shows of others: what comes out, and that nothing is left."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from support.foreground import (
    ANSWER,
    EARLY,
    FOREVER,
    LISTEN,
    Machine,
    environment,
    fingerprint,
    make_plugin,
    wait_until,
)
from support.local_user import open_to_all

pytestmark = pytest.mark.real


def test_l01_output_ready_implements_and_the_plugins_exit_status(machine: Machine, tmp_path: Path) -> None:
    say = "print('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\n"
    plugin = make_plugin(tmp_path / "it", "import sys\n" + say + ANSWER)
    before = fingerprint(plugin)
    run = machine.start(plugin)
    ready = run.until("ready")
    assert ready == {"event": "ready", "seconds": ready["seconds"], "implements": ["VolumeDriver", "x"], "problem": ""}
    assert 0 < ready["seconds"] < 60
    assert run.accepts()
    assert run.end(signal.SIGINT) == 130
    assert {(event["stream"], event["line"]) for event in run.all("output")} == {("stdout", "out"), ("stderr", "err")}
    assert run.exit == {"code": 7, "signal": None, "oom": False, "reason": ""}
    assert [event["event"] for event in run.events if event["event"] != "output"] == [
        "starting",
        "started",
        "ready",
        "exit",
        "gone",
    ]
    assert run.stderr == ""
    assert fingerprint(plugin) == before


def test_l01_people_see_time_and_stream_and_our_words_apart_from_the_plugins(machine: Machine, tmp_path: Path) -> None:
    once = ANSWER.replace("    c.close()\n", "        os._exit(3)\n    c.close()\n", 1)  # when it has answered
    plugin = make_plugin(tmp_path / "it", "import os\nprint('hello', flush=True)\n" + once)
    done = machine.moorage("run", plugin)
    assert done.returncode == 3
    time, stream, bar, text = done.stdout.split()
    assert (stream, bar, text) == ("stdout", "|", "hello")
    assert time.count(":") == 2
    assert "." in time
    said = done.stderr.splitlines()
    assert all(line.startswith("moorage: ") for line in said)
    assert said[0] == f"moorage: starting {plugin}"
    assert said[1].startswith("moorage: socket /run/moorage-run-")
    assert said[2].startswith("moorage: ready after ")
    assert said[2].endswith(" s, implements VolumeDriver, x")
    assert said[3:] == ["moorage: the plugin exited with status 3"]


def test_l01_a_plugin_killed_by_a_signal_gives_128_and_its_number(machine: Machine, tmp_path: Path) -> None:
    run = machine.start(make_plugin(tmp_path / "it", ANSWER))
    run.until("ready")
    machine.note()
    os.kill(machine.plugins()[0], signal.SIGKILL)
    assert run.end() == 137
    assert run.exit == {"code": 137, "signal": "SIGKILL", "oom": False, "reason": ""}


def test_l01_a_plugin_that_exits_before_it_is_ready_is_reported_with_its_last_lines(
    machine: Machine, tmp_path: Path
) -> None:
    run = machine.start(make_plugin(tmp_path / "it", ["/bin/sh", "-c", "echo boom >&2; exit 3"]))
    assert run.end() == 3
    assert run.lines == ["boom"]
    assert run.all("ready") == []
    assert run.exit == {"code": 3, "signal": None, "oom": False, "reason": ""}


def test_l01_keep_leaves_what_the_plugin_wrote_and_says_where(machine: Machine, tmp_path: Path) -> None:
    script = "umask 077; mkdir /d; echo text > /d/file; rm -f /gone; exit 0"
    plugin = make_plugin(tmp_path / "it", ["/bin/sh", "-c", script])
    (plugin / "rootfs/gone").touch()
    before = fingerprint(plugin)
    run = machine.start("--keep", plugin)
    assert run.end() == EARLY
    (preserved,) = run.all("kept")
    upper = machine.inside(preserved["changes"])
    assert (upper / "d/file").read_text() == "text\n"
    assert stat.S_ISCHR((upper / "gone").lstat().st_mode)  # how an overlay notes that a file is removed
    assert fingerprint(plugin) == before
    names = {path.relative_to(upper).parts[0] for path in upper.iterdir()}
    assert {"d", "gone"} <= names
    machine.do(f"rm -r {preserved['changes']} && rmdir {Path(preserved['changes']).parent}")  # and nothing else is left


def test_l01_print_spec_starts_nothing_and_needs_no_root(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(open_to_all(tmp_path) / "it", "", env=[{"name": "A", "settable": ["value"], "value": "1"}])
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for wrapper in ([], unprivileged):
        done = machine.moorage("run", "--print-spec", plugin, "A=2 3", wrapper=wrapper)
        assert (done.returncode, done.stderr) == (0, "")
        spec = json.loads(done.stdout)
        assert spec["process"]["args"] == ["/usr/bin/python3", "-I", "-S", "-c", ""]
        assert "A=2 3" in spec["process"]["env"]
        assert spec["root"]["path"].startswith("/run/moorage-run-")
    machine.assert_nothing_left()


def test_l01_settings_reach_the_process(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new/file").write_text("seen")
    plugin = make_plugin(
        tmp_path / "it",
        ["/bin/sh", "-c", 'echo "$WORD" "$@"; cat /share/file', "it"],
        env=[{"name": "WORD", "settable": ["value"], "value": "old"}],
        args={"name": "args", "settable": ["value"], "value": ["-q"]},
        mounts=[{"name": "share", "type": "bind", "destination": "/share", "source": None, "settable": ["source"]}],
    )
    run = machine.start(plugin, "WORD=a = b", "args=-v --x", f"share.source={tmp_path / 'new'}")
    assert run.end() == EARLY
    assert run.lines == ["a = b -v --x", "seen"]


@pytest.mark.parametrize("last", [LISTEN.index("s = "), LISTEN.index("s.listen()")], ids=["no socket", "only bound"])
def test_m03_a_plugin_that_does_not_listen_in_time_is_stopped(machine: Machine, tmp_path: Path, last: int) -> None:
    run = machine.start("--timeout", "0.5", make_plugin(tmp_path / "it", LISTEN[:last] + "\n" + FOREVER))
    assert run.end() == 1
    assert run.all("ready") == []
    assert run.exit["code"] == 7
    socket_path = run.until("started")["socket"]
    assert f"did not accept a connection on {socket_path} within 0.5 s and was stopped" in run.stderr


def test_m03_a_plugin_that_listens_late_is_ready_when_it_listens(machine: Machine, tmp_path: Path) -> None:
    wait = "import os, time\nwhile not os.path.exists('/go'): time.sleep(.01)\nos.write(1, b'now\\n')\n"
    plugin = make_plugin(tmp_path / "it", wait + ANSWER)
    run = machine.start(plugin)
    root = machine.inside(run.until("started")["root"])
    assert not run.accepts()
    assert run.all("ready") == []
    (root / "go").touch()
    assert run.until("ready")["implements"] == ["VolumeDriver", "x"]
    assert run.end(signal.SIGINT) == 130


def test_m03_a_wedged_plugin_is_ready_all_the_same_and_can_be_stopped(machine: Machine, tmp_path: Path) -> None:
    run = machine.start(make_plugin(tmp_path / "it", LISTEN + "print('up', flush=True)\n" + FOREVER))
    run.until("output")
    wait_until(run.accepts, "a connection")
    assert run.end(signal.SIGINT) == 130
    assert run.exit["code"] == 7


def test_m03_activation_is_only_information(machine: Machine, tmp_path: Path) -> None:
    program = ANSWER.replace("200 OK", "404 Not Found")
    run = machine.start(make_plugin(tmp_path / "it", program))
    ready = run.until("ready")
    assert (ready["implements"], ready["problem"]) == (None, "answers 404 to /Plugin.Activate")
    assert run.accepts()
    assert run.end(signal.SIGTERM) == 143


def test_m03_a_plugin_of_another_protocol_is_not_spoken_to(machine: Machine, tmp_path: Path) -> None:
    printing_server = "while True:\n c, _ = s.accept()\n print(c.recv(99), flush=True)\n c.close()\n"
    interface = {"types": ["x/1.0"], "socket": "csi/csi.sock", "protocolScheme": "csi.v1"}
    make_directory = "import os\nos.makedirs('/run/docker/plugins/csi', exist_ok=True)\n"
    program = make_directory + (LISTEN + printing_server).replace("/it.sock", "/csi/csi.sock")
    run = machine.start(make_plugin(tmp_path / "it", program, interface=interface))
    ready = run.until("ready")
    assert (ready["implements"], ready["problem"]) == (None, "")
    assert run.until("started")["socket"].endswith("/s/csi/csi.sock")
    assert run.end(signal.SIGINT) == 130
    assert set(run.lines) <= {"b''"}


def test_m15_a_mount_made_by_the_plugin_is_seen_on_the_host(machine: Machine, tmp_path: Path) -> None:
    mount = "mkdir /mnt/v/a; mount -t tmpfs none /mnt/v/a; echo text > /mnt/v/a/file"
    mount += "; trap 'exit 4' TERM; echo done; sleep 1000 & wait"
    capabilities = {"capabilities": ["CAP_SYS_ADMIN"]}
    plugin = make_plugin(tmp_path / "it", ["/bin/sh", "-c", mount], propagatedMount="/mnt/v", linux=capabilities)
    run = machine.start(plugin)
    run.until("output")
    workspace = run.until("started")["propagated_mount"]
    assert f"{workspace}/a" in machine.mounts()
    assert (machine.inside(workspace) / "a/file").read_text() == "text\n"
    root = run.until("started")["root"]
    assert (machine.inside(root) / "mnt/v").is_dir()
    assert run.end(signal.SIGINT) == 130  # with a mount left by the plugin


def test_c07_a_plugin_of_another_user_can_make_its_socket(machine: Machine, tmp_path: Path) -> None:
    program = ANSWER.replace("s.listen()", "s.listen()\nprint(os.getuid(), os.getgid(), flush=True)")
    run = machine.start(make_plugin(tmp_path / "it", program, user={"uid": 1000, "gid": 1001}))
    assert run.until("ready")["implements"] == ["VolumeDriver", "x"]
    assert run.socket().stat().st_uid == 1000
    assert run.end(signal.SIGINT) == 130
    assert run.lines == ["1000 1001"]


ODD_BYTES = bytes(range(256)).replace(b"\n", b"").replace(b"\r", b"")


def test_l01_every_output_comes_out_as_lines(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/cat", "/output"])
    (plugin / "rootfs/output").write_bytes(b"\n\na\r\n" + ODD_BYTES + "\nä€\nno end".encode())
    run = machine.start(plugin)
    assert run.end() == EARLY
    assert run.lines == ["", "", "a", ODD_BYTES.decode(errors="backslashreplace"), "ä€", "no end"]


def test_l01_a_line_without_end_comes_in_pieces_of_whole_characters(machine: Machine, tmp_path: Path) -> None:
    text = "x" + "€" * 100_000
    plugin = make_plugin(tmp_path / "it", ["/bin/cat", "/output"])
    (plugin / "rootfs/output").write_bytes(text.encode() + b"\nshort")
    run = machine.start(plugin)
    assert run.end() == EARLY
    assert run.lines[-1] == "short"
    assert max(len(line.encode()) for line in run.lines) <= 65536
    assert "".join(run.lines[:-1]) == text


def test_l01_100_megabytes_of_output_come_out_whole(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/sh", "-c", "yes $(printf %0999d 7) | head -c 100000000"])
    with subprocess.Popen(
        machine.command(sys.executable, "-m", "moorage", "run", plugin),
        env=environment(None),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        line = b"%0999d" % 7
        count = sum(1 for each in child.stdout if each.endswith(b" stdout | " + line + b"\n"))
        assert child.wait() == EARLY
    assert count == 100_000


ODD_NAMES = ["-a b,c:d\\e\tf\ng%s{}", "ä€\u202e" + "x" * 200]


def test_l01_any_path_of_the_plugin_will_do(machine: Machine, tmp_path: Path) -> None:
    for name in ODD_NAMES:
        plugin = make_plugin(tmp_path / "odd" / name, ["/bin/sh", "-c", "echo new > /file; cat /old"])
        (plugin / "rootfs/old").write_text("it is seen")
    one = tmp_path / "odd"
    for name in ODD_NAMES:
        run = machine.start("--", one / name)
        assert run.end() == EARLY, run.stderr
        assert run.lines == ["it is seen"]
        assert not (one / name / "rootfs/file").exists()
        assert "using a copy" not in run.stderr


def test_l01_any_path_of_the_temporary_directory_works(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/sh", "-c", "echo new > /file; cat /file"])
    for name in ["a,b:c d\\e\tf", "upperdir=x,"]:
        machine.inside("/var/tmp/" + name).mkdir()
        run = machine.start(plugin, env={"TMPDIR": f"/var/tmp/{name}"})
        assert run.end() == EARLY, run.stderr
        assert run.lines == ["new"]
        assert "using a copy" not in run.stderr
        machine.inside("/var/tmp/" + name).rmdir()


def test_l01_a_root_of_odd_files_is_no_trouble(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(
        tmp_path / "it", ["/bin/sh", "-c", "ls / && test -p /fifo && test -S /socket && test -c /null"]
    )
    root = tmp_path / "elsewhere"
    (plugin / "rootfs").rename(root)
    (plugin / "rootfs").symlink_to("../elsewhere")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(root, os.O_PATH)
        listener.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    run = machine.start(plugin)
    assert run.end() == EARLY, run.stderr
    assert {"fifo", "null", "socket", "usr"} <= set(run.lines)


def test_l01_a_read_only_directory_will_do(tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ["/bin/sh", "-c", "echo new > /file; cat /file"])
    with Machine(f"mount --bind {plugin} {plugin}; mount -o remount,bind,ro {plugin}") as machine:
        run = machine.start(plugin)
        assert run.end() == EARLY, run.stderr
        assert run.lines == ["new"]


def test_l01_two_runs_at_once_do_not_know_of_each_other(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ANSWER)
    runs = [machine.start(plugin), machine.start(plugin)]
    for run in runs:
        run.until("ready")
    assert runs[0].id != runs[1].id
    assert runs[0].end(signal.SIGINT) == 130
    assert runs[1].accepts()
    assert runs[1].child.poll() is None
    assert runs[1].end(signal.SIGINT) == 130
    assert "killed run" not in runs[0].stderr + runs[1].stderr


def test_l01_a_config_that_says_something_else_than_the_answer_gets_a_warning(machine: Machine, tmp_path: Path) -> None:
    plugin = make_plugin(tmp_path / "it", ANSWER)
    path = plugin / "config.json"
    document = json.loads(path.read_text())
    document["interface"]["types"] = ["docker.logdriver/1.0", "docker.volumedriver/1.0"]
    path.write_text(json.dumps(document))
    run = machine.start(plugin)
    problem = run.until("ready")["problem"]
    assert problem.startswith("its config says logdriver, but its answer to Plugin.Activate says VolumeDriver, x;")
    run.end(signal.SIGINT)
