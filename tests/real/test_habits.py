"""Commands as fingers know them from docker, podman and systemctl, on a real engine."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineProcess, actor, config, engine
from support.foreground import wait_until
from support.limits import limit
from support.terminals import show

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]

HOST = [
    {"name": each.strip("/"), "source": each, "destination": each, "type": "bind", "options": ["rbind", "ro"]}
    for each in ("/usr", "/bin", "/lib", "/lib64")
]
TAR = {"Content-Type": "application/x-tar"}
PASSWD = b"root:x:0:0::/:/bin/sh\nann:x:1234:1235::/:/bin/sh\n"
GROUP = b"staff:x:50:ann\n"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as made:
        files = {"etc/passwd": PASSWD, "etc/group": GROUP}
        document = config(mounts=HOST, env=[{"name": "LEVEL", "value": "1", "settable": ["value"]}])
        made.create("p", document, **files)
        made.create("q", document, **files)
        made.enable("p")
        yield made
        for each in made.plugins():
            made.remove(each["Id"], force=True)


def call(house: EngineProcess, *words: str, given: str | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=limit(60), check=False)


def out(house: EngineProcess, *words: str) -> str:
    done = call(house, *words)
    assert done.returncode == 0, done
    return done.stdout


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("-u", "ann", "p", "id", "-u"), "1234\n"),
        (("-u", "ann", "p", "id", "-g"), "1235\n"),
        (("-u", "ann", "p", "id", "-G"), "1235 50\n"),
        (("--user", "77:staff", "p", "sh", "-c", "echo $(id -u):$(id -g)"), "77:50\n"),
        (("-w", "/usr", "p", "pwd"), "/usr\n"),
        (("-e", "GIVEN", "-e", "ABSENT_HERE", "p", "sh", "-c", "echo $GIVEN-${ABSENT_HERE-none}"), "from us-none\n"),
    ],
)
def test_h03_exec_as_docker_has_it(
    house: EngineProcess, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], shown: str
) -> None:
    monkeypatch.setenv("GIVEN", "from us")
    assert out(house, "exec", *words) == shown


def test_h03_exec_reads_variables_from_a_file(house: EngineProcess, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# a comment\nA=1\n\nB=two words\n")
    shown = out(house, "exec", "--env-file", str(tmp_path / "env"), "-e", "A=2", "p", "sh", "-c", "echo $A $B")
    assert shown == "2 two words\n"


@pytest.mark.parametrize(
    ("words", "status", "cause"),
    [
        (("p", "/no/such"), 127, "no such file"),
        (("p", "no-such-program"), 127, "not found"),
        (("p", "/usr"), 126, "cannot run /usr"),
        (("q", "true"), 125, "does not run"),
        (("absent", "true"), 125, "not found"),
        (("-u", "nobody-here", "p", "true"), 125, "unable to find user nobody-here"),
        (("p", "sh", "-c", "exit 7"), 7, ""),
    ],
)
def test_h03_exec_has_dockers_exit_statuses(
    house: EngineProcess, words: tuple[str, ...], status: int, cause: str
) -> None:
    done = call(house, "exec", *words)
    assert done.returncode == status, done
    assert cause in done.stderr


def test_h03_exec_in_the_background_returns_at_once(house: EngineProcess) -> None:
    started_at = time.monotonic()
    assert out(house, "exec", "-d", "p", "sleep", "3") == ""
    assert time.monotonic() - started_at < limit(3)
    shown = out(house, "top", "p", "--format", "{{.Command}}")
    assert "sleep 3" in shown
    wait_until(lambda: "sleep" not in out(house, "top", "p"), "the command has exited")


def test_h03_top_shows_the_processes(house: EngineProcess) -> None:
    head, line = out(house, "top", "p").splitlines()
    assert head.split() == ["PID", "PPID", "STATE", "THREADS", "MEMORY", "STARTED", "TIME", "COMMAND"]
    assert line.split()[0] == str(house.more("p")["Pid"])
    assert [json.loads(each)["Command"] for each in out(house, "top", "p", "--json").splitlines()] == ["/actor"]
    assert call(house, "top", "q").returncode == 1
    assert all(len(each) <= 80 for each in show(80, "--host", str(house.socket), "top", "p").lines)


def test_h03_kill_signals_and_wait_prints_the_status(house: EngineProcess) -> None:
    pid = house.more("p")["Pid"]
    waiting = subprocess.Popen(
        [sys.executable, "-m", "moorage", "--host", f"unix://{house.socket}", "wait", "p"],
        stdout=subprocess.PIPE,
        text=True,
    )
    house.wait_until(lambda: house.info()["NEventsListener"] == 1, "it waits")
    assert out(house, "kill", "-s", "URG", "p") == "p\n"  # ignored
    assert house.more("p")["Pid"] == pid
    assert out(house, "kill", "p") == "p\n"
    assert waiting.communicate(timeout=limit(30))[0] == f"{128 + signal.SIGKILL}\n"
    house.wait_until(lambda: house.more("p")["State"] == "ready" and house.more("p")["Pid"] != pid, "it is back")
    assert "Invalid signal: none" in call(house, "kill", "-s", "none", "p").stderr
    assert "it is disabled" in call(house, "kill", "q").stderr
    assert out(house, "wait", "q") == "0\n"


def test_h03_rename_keeps_the_id(house: EngineProcess) -> None:
    id = house.inspect("q")["Id"]
    assert out(house, "rename", "q", "r") == "r\n"
    assert house.inspect("r")["Id"] == id
    assert call(house, "rename", "r", "p").returncode == 1
    assert out(house, "events", "--since", "1h", "--until", "0s", "-f", "event=rename", "--format", "{{.Name}}") == (
        "r:latest\n"
    )
    out(house, "rename", "r", "q")


def test_h03_set_restarts_an_enabled_plugin(house: EngineProcess) -> None:
    pid = house.more("p")["Pid"]
    assert "cannot set on an active plugin" in call(house, "set", "p", "LEVEL=2").stderr
    out(house, "set", "--restart", "p", "LEVEL=2")
    assert "LEVEL=2" in house.inspect("p")["Settings"]["Env"]
    assert house.more("p")["State"] == "ready"
    assert house.more("p")["Pid"] != pid
    refused = call(house, "set", "--restart", "p", "NONE=2")
    assert refused.returncode == 1
    assert house.more("p")["State"] == "ready"


def test_h03_logs_of_several_plugins_side_by_side(house: EngineProcess) -> None:
    out(house, "enable", "q")
    for name in ("p", "q", "p"):
        write(house, name, f"from-{name}")
    house.wait_until(lambda: "from-p" in str(house.logs("p")[-1:]), "it is written")
    shown = out(house, "logs", "-n", "5", "p", "q")
    names = [line.split()[0] for line in shown.splitlines() if "from-" in line]
    assert names == ["p", "q", "p"]
    stamped = out(house, "logs", "-t", "-n", "1", "p").split()[0]
    assert len(stamped) == len("2026-01-02T03:04:05.000000000Z")
    assert stamped.endswith("Z")
    assert out(house, "logs", "--no-log-prefix", "-n", "1", "q").startswith("from-q")
    assert out(house, "logs", "--until", "1h", "p") == ""
    assert "from-p" in out(house, "logs", "--since", "2 hours ago", "p")
    followed = subprocess.Popen(
        [sys.executable, "-m", "moorage", "--host", str(house.socket), "logs", "-f", "-n", "0", "p", "q"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        house.wait_until(lambda: _print_until(house, followed), "a line of each is followed")
    finally:
        followed.kill()
        followed.communicate()
    out(house, "disable", "q")


def write(house: EngineProcess, name: str, text: str) -> None:
    """Let a plugin write a line."""
    out(house, "exec", name, "sh", "-c", f"echo {text} >/proc/1/fd/1")


def _print_until(house: EngineProcess, child: "subprocess.Popen[str]") -> bool:
    import select

    for name in ("p", "q"):
        write(house, name, f"followed-{name}")
    assert child.stdout is not None
    seen: set[str] = set()
    while select.select([child.stdout], [], [], 0.5)[0] and len(seen) < 2:
        line = child.stdout.readline()
        seen |= {name for name in ("p", "q") if f"followed-{name}" in line and line.startswith(name)}
    return seen == {"p", "q"}


def test_h02_enable_of_a_failed_plugin_starts_it_again(house: EngineProcess) -> None:
    out(house, "policy", "p", "--restart", "never")
    house.crash("p", 3)
    house.until("p", "failed")
    assert out(house, "wait", "p") == "3\n"
    assert out(house, "enable", "p") == "p\n"
    assert house.more("p")["State"] == "ready"
    out(house, "policy", "p", "--restart", "always")


def test_h03_upgrade_takes_a_directory(house: EngineProcess, tmp_path: Path) -> None:
    house.create("own", config(env=[{"name": "OLD", "value": "", "settable": ["value"]}]))
    house.set("own", "OLD=1")
    house.enable("own")
    before = house.inspect("own")
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "rootfs/actor").write_bytes(actor())
    (tmp_path / "rootfs/actor").chmod(0o755)
    document = config(env=[{"name": "NEW", "value": "x", "settable": ["value"]}], description="the next one")
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert "must be disabled" in call(house, "upgrade", "own", str(tmp_path)).stderr
    done = call(house, "upgrade", "--restart", "own", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "own:latest\n"), done
    assert "the setting OLD.value does not apply any more" in done.stderr
    after = house.inspect("own")
    assert (after["Id"], after["Config"]["Description"]) == (before["Id"], "the next one")
    assert after["Moorage"]["State"] == "ready"
    (tmp_path / "config.json").write_text(json.dumps(config(entrypoint=["/absent"])))
    broken = call(house, "upgrade", "--restart", "own", str(tmp_path))
    assert broken.returncode == 1
    house.until("own", "ready")
    assert house.inspect("own")["Config"]["Description"] == "the next one"


def test_h03_cp_copies_out_and_in(house: EngineProcess, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "sub/data").write_bytes(b"x" * 300_000)
    (made / "run").write_text("#!/bin/sh\n")
    (made / "run").chmod(0o4755)
    (made / "link").symlink_to("sub/data")
    out(house, "cp", str(made), "p:/")
    assert out(house, "exec", "p", "sh", "-c", "wc -c </made/link; stat -c %a:%u /made/run").split() == [
        "300000",
        "755:0",
    ]
    out(house, "cp", "p:/made", str(tmp_path / "back"))
    assert (tmp_path / "back/sub/data").read_bytes() == b"x" * 300_000
    assert os.readlink(tmp_path / "back/link") == "sub/data"
    out(house, "cp", "p:latest:/made/run", str(tmp_path))
    assert (tmp_path / "run").read_text() == "#!/bin/sh\n"
    out(house, "cp", str(tmp_path / "run"), "p:/made/renamed")
    assert out(house, "exec", "p", "cat", "/made/renamed") == "#!/bin/sh\n"
    archive = subprocess.run(
        [sys.executable, "-m", "moorage", "--host", str(house.socket), "cp", "p:/made/sub", "-"],
        capture_output=True,
        check=True,
        timeout=limit(60),
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        assert found.getnames() == ["sub", "sub/data"]


def test_h03_cp_follows_no_link_out_of_the_plugin(house: EngineProcess, tmp_path: Path) -> None:
    """The plugin's links lead to files of the plugin, and never to those of the host."""
    (tmp_path / "secret").write_text("of the host")
    out(house, "exec", "p", "ln", "-sfn", str(tmp_path), "/trap")
    for words in (("cp", "p:/trap/secret", str(tmp_path / "stolen")), ("cp", str(tmp_path / "secret"), "p:/trap/new")):
        done = call(house, *words)
        assert done.returncode == 1, done
        assert "no such file" in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["secret"]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("x")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("x/new"))
    path = "/moorage/v1/plugins/p/archive?path=/"
    status, raw = house.request("PUT", path, stream.getvalue(), headers={"Content-Type": "application/x-tar"})
    assert status == 400, raw
    assert sorted(each.name for each in tmp_path.iterdir()) == ["secret"]
    escape = io.BytesIO()
    with tarfile.open(fileobj=escape, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../new"))
    status, raw = house.request("PUT", path, escape.getvalue(), headers={"Content-Type": "application/x-tar"})
    assert (status, b"leads out of the directory" in raw) == (400, True)


def test_h03_exec_and_health_commands_work_in_a_plugin_with_a_user_namespace(house: EngineProcess) -> None:
    house.create("apart", config())
    house.request_own("PUT", "apart", "policy", {"userns": "auto"})
    house.enable("apart")
    ends = ["/actor", "end=5"]
    assert call(house, "exec", "apart", *ends).returncode == 5
    check = {"Kind": "command", "Command": ["/actor", "end=0"]}
    house.request_own("PUT", "apart", "policy", {"health": {"Checks": [check]}})
    house.wait_until(lambda: house.more("apart")["Health"]["Status"] == "healthy", "it is healthy")
    house.request_own("POST", "apart", "restart")
    assert call(house, "exec", "apart", *ends).returncode == 5
    house.remove("apart", force=True)
    assert not list((house.exec_root / "u").glob("*"))


def renamed(raw: bytes) -> bytes:
    """An archive whose entry is called new."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(raw)) as found, tarfile.open(fileobj=stream, mode="w") as made:
        for each in found:
            content = found.extractfile(each)
            each.name = "new"
            made.addfile(each, content)
    return stream.getvalue()


def test_h03_cp_of_a_plugin_with_a_user_namespace_has_the_ids_inside(house: EngineProcess, tmp_path: Path) -> None:
    """What is copied in belongs to root of the plugin, and what is copied out to who copies it."""
    house.create("mapped", config())
    house.request_own("PUT", "mapped", "policy", {"userns": "auto"})
    house.enable("mapped")
    root = Path(f"/proc/{house.more('mapped')['Pid']}/root")
    (tmp_path / "in").write_text("from outside")
    out(house, "cp", str(tmp_path / "in"), "mapped:/own")
    base = (root / "own").stat().st_uid
    assert base == (root / "own").stat().st_gid >= 65536, "on the host its root is the first id of its namespace"
    os.chown(root / "own", base + 7, base + 8)
    (root / "own").chmod(0o640)
    out(house, "cp", "mapped:/own", str(tmp_path / "own"))
    copied = (tmp_path / "own").stat()
    assert (copied.st_uid, copied.st_gid, copied.st_mode & 0o777) == (os.getuid(), os.getgid(), 0o640)
    status, raw = house.request("GET", "/moorage/v1/plugins/mapped/archive?path=/own")
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        (member,) = archive.getmembers()
    assert (status, member.uid, member.gid) == (200, 7, 8), "an archive has the ids of the plugin"
    status, raw = house.request("PUT", "/moorage/v1/plugins/mapped/archive?path=/", renamed(raw), headers=TAR)
    assert status < 300, raw
    assert (root / "new").stat().st_uid == base, "files get the owner of the directory"
    house.remove("mapped", force=True)


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("p:/absent", "."), "the plugin has no such file"),
        (("p:/proc/1/environ", "."), "exists only inside the plugin"),
        (("q:/etc/passwd", "."), "it is disabled"),
        (("/absent", "p:/"), "there is no such file"),
        (("/etc/hostname", "p:/usr"), "it is read-only for the plugin"),
        (("a", "b"), "give PLUGIN:PATH"),
    ],
)
def test_h03_cp_says_what_cannot_be_copied(house: EngineProcess, words: tuple[str, str], cause: str) -> None:
    done = call(house, "cp", *words)
    assert done.returncode != 0
    assert cause in done.stderr
