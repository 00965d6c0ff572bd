"""Lines of plugins in the journal and syslog, by a real journald in a mount namespace of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import EngineProcess, config
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc", "journalctl")]

JOURNALD = Path("/lib/systemd/systemd-journald")
WITH_JOURNALD = """
set -e
mount --make-rprivate /
mkdir -p /run/systemd /run/log
mount -t tmpfs none /run/systemd
mount -t tmpfs none /run/log
mkdir -p /run/systemd/journal
"$1" >/dev/null 2>&1 &
journald=$!
trap 'kill $journald' EXIT
until [ -S /run/systemd/journal/socket ]; do sleep 0.05; done
[ -e /dev/log ] && mount --bind /run/systemd/journal/dev-log /dev/log
"$2" -c "$3" "$4"
journalctl -q --sync 2>/dev/null || sleep 1
shift 4
journalctl -q -D /run/log/journal -a -o json --no-pager "$@"
"""
WRITE = """
import sys
from moorage.logs import targets
from moorage.logs.writer import LineStream, LogWriter
directory = sys.argv[1]
targets.SYSLOG = "/run/systemd/journal/dev-log"
targets.write_target(directory, sys.argv[1].rpartition("-")[2], "vol:latest", "1" * 64)
writer = LogWriter(directory, most_bytes=1 << 20, files=2)
out, err = LineStream(writer, "stdout"), LineStream(writer, "stderr")
out.take(b"first\\nsec")
out.take(b"tion\\n")
err.take("bad \\u00e4 \\x1b[31m\\n".encode())
out.take(b"x" * 100_000 + b"\\n")
writer.close()
"""


def journal(directory: Path, *matches: str) -> list[dict[str, str]]:
    """What journald has of what a log wrote with a target."""
    directory.mkdir()
    command = ["unshare", "-m", "bash", "-c", WITH_JOURNALD, "bash", str(JOURNALD), sys.executable, WRITE]
    done = subprocess.run(
        [*command, str(directory), *matches], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not JOURNALD.exists(), reason="no journald")
def test_h06_lines_are_in_the_journal_with_fields(tmp_path: Path) -> None:
    lines = journal(tmp_path / "log-journald", "MOORAGE_PLUGIN=vol:latest")
    assert [line["MESSAGE"] for line in lines[:2]] == ["first", "section"]
    assert [(line["MOORAGE_STREAM"], line["PRIORITY"]) for line in lines[1:3]] == [("stdout", "6"), ("stderr", "3")]
    assert {line["SYSLOG_IDENTIFIER"] for line in lines} == {"vol:latest"}
    assert {line["MOORAGE_PLUGIN_ID"] for line in lines} == {"1" * 64}
    assert [line.get("MOORAGE_PARTIAL") for line in lines[3:]] == ["true", None]
    text = (tmp_path / "log-journald/current").read_bytes()
    assert text.count(b"\n") == 5


@pytest.mark.skipif(not JOURNALD.exists(), reason="no journald")
def test_h06_lines_go_to_syslog(tmp_path: Path) -> None:
    lines = journal(tmp_path / "log-syslog", "SYSLOG_IDENTIFIER=vol:latest")
    assert [line["MESSAGE"] for line in lines][:2] == ["first", "section"]
    assert {(line["SYSLOG_FACILITY"], line["_TRANSPORT"]) for line in lines} == {("3", "syslog")}


@pytest.mark.usefixtures("nothing_else")
def test_h06_the_policy_decides_where_lines_go(house: EngineProcess) -> None:
    house.create("p", config())
    target = house.root / "logs" / house.inspect("p")["Id"] / "target"

    def policy(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "moorage", "--host", str(house.socket), "policy", "p", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=limit(60), check=False)

    assert policy("--log", "journald").returncode == 0
    assert target.read_text().split("\0") == ["journald", "p:latest", house.inspect("p")["Id"]]
    assert house.more("p")["Policy"]["Log"] == "journald"
    house.enable("p")
    house.request_own("POST", "p", "rename?name=q")
    assert target.read_text().split("\0")[1] == "q:latest"
    house.request_own("POST", "q", "rename?name=p")
    assert "log             journald\n" in policy().stdout
    assert policy("--log", "elsewhere").returncode == 2
    assert policy("--log", "file").returncode == 0
    assert not target.exists()


@pytest.fixture
def journal_namespace() -> Iterator[list[str]]:
    """A command that enters a mount namespace with a journald of its own; that one runs until the end of the test."""
    script = WITH_JOURNALD.partition('"$2" -c')[0] + "echo ready\nwait $journald"
    holder = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", script, "bash", str(JOURNALD)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield ["nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--"]
    finally:
        holder.terminate()
        holder.communicate(timeout=limit(30))


@pytest.mark.skipif(not JOURNALD.exists(), reason="no journald")
def test_h06_what_a_plugin_prints_is_found_by_journalctl(journal_namespace: list[str], tmp_path: Path) -> None:
    """The whole way: plugin, shim, log keeper, journald, journalctl; after a rename under the new name."""
    made = EngineProcess(tmp_path, prefix=journal_namespace)

    def found(*matches: str) -> list[str]:
        command = [
            *journal_namespace,
            "journalctl",
            "-q",
            "-D",
            "/run/log/journal",
            "-o",
            "json",
            "--no-pager",
            *matches,
        ]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=limit(30), check=True).stdout
        return [str(json.loads(line)["MESSAGE"]) for line in shown.splitlines()]

    made.start()
    try:
        made.create("p", config("out=hello", "err=trouble"))
        made.request_own("PUT", "p", "policy", {"log": "journald"})
        made.enable("p")
        id = made.inspect("p")["Id"]
        made.wait_until(lambda: found("MOORAGE_PLUGIN=p:latest", "MOORAGE_STREAM=stdout") == ["hello"], "it is there")
        made.wait_until(lambda: found(f"MOORAGE_PLUGIN_ID={id}", "PRIORITY=3") == ["trouble"], "errors, too")
        made.request_own("POST", "p", "rename?name=q")
        made.request_own("POST", "q", "restart")
        made.wait_until(
            lambda: found("MOORAGE_PLUGIN=q:latest", "MOORAGE_STREAM=stdout") == ["hello"], "by its new name"
        )
        made.remove("q", force=True)
    finally:
        made.close()
