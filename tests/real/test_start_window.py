"""The window after a start, before it is known what runs, and the one of a shutdown: calls and signals in them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support import leftovers
from support.engines import EngineProcess, Refused, config, engine
from support.foreground import environment, wait_until
from support.leftovers import is_alive
from support.limits import limit
from support.service_manager import service_manager

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EngineProcess]:
    with engine(tmp_path) as made:
        yield made


@contextmanager
def containerd_stopped(made: EngineProcess) -> Iterator[None]:
    """Its containerd stands still, so that an engine that starts cannot find out what runs."""
    pid = int((made.exec_root / "containerd/pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def start_and_ping(made: EngineProcess) -> None:
    """Start it, and return when it answers, whatever it knows by then."""
    made.start(wait=False)
    made.wait_until(lambda: made.request("GET", "/_ping")[0] == 200, "it answers")


def kill_engine(made: EngineProcess) -> None:
    assert made.end(signal.SIGKILL) == -signal.SIGKILL


# calls


def test_case_245_a_disable_before_it_is_known_what_runs_waits_and_ends_it(own: EngineProcess) -> None:
    own.create("p", config("out=begun"))
    own.enable("p")
    pid = own.more("p")["Pid"]
    kill_engine(own)
    start_and_ping(own)
    own.disable("p")
    assert not is_alive(pid)
    assert leftovers.mounts_below(own.exec_root / "p", own.root / "plugins") == []
    assert own.state("p") == "disabled"


CALLS: dict[str, Callable[[EngineProcess], Any]] = {
    "disable": lambda made: made.disable("p", force=True),
    "restart": lambda made: made.request_own("POST", "p", "restart"),
    "rm": lambda made: made.remove("p", force=True),
    "set": lambda made: made.set("p", "A=b"),
    "enable": lambda made: made.enable("p"),
    "upgrade": lambda made: made.upgrade("p"),
    "call": lambda made: made.call("p", "VolumeDriver.List"),
    "create": lambda made: made.create("q"),
    "df": lambda made: made.request_json("GET", "/moorage/v1/df"),
    "prune": lambda made: made.request_json("POST", "/moorage/v1/prune"),
    "stats": lambda made: made.request_own("GET", "p", "stats?stream=0"),
}
REFUSED = {
    "set": (409, "active plugin"),
    "enable": (409, "already enabled"),
    "upgrade": (409, "must be disabled"),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", CALLS)
def test_case_245_224_calls_wait_until_containerd_has_answered(own: EngineProcess, what: str) -> None:
    own.create("p", config("out=begun", env=[{"name": "A", "settable": ["value"], "value": "a"}]))
    own.enable("p")
    pid = own.more("p")["Pid"]
    kill_engine(own)
    with ThreadPoolExecutor(1) as pool:
        with containerd_stopped(own):
            start_and_ping(own)
            done: Future[Any] = pool.submit(CALLS[what], own)
            # another call is answered meanwhile, and this one has not been
            assert own.plugins()[0]["Name"] == "p:latest"
            assert is_alive(pid)
            assert not done.done()
        if what in REFUSED:
            with pytest.raises(Refused) as refused:
                done.result(limit(60))
            status, words = REFUSED[what]
            assert refused.value.status == status, refused.value
            assert words in refused.value.message
        else:
            done.result(limit(60))
    assert is_alive(pid) is (what not in ("disable", "restart", "rm"))
    if what not in ("disable", "rm"):
        more = own.until("p", "ready")
        assert (more["Pid"] == pid) is (what != "restart")


def test_case_224_a_call_is_answered_after_a_bound_where_containerd_does_not_come(tmp_path: Path) -> None:
    made = EngineProcess(tmp_path, containerd=str(tmp_path / "nothing.sock"), timeouts={"containerd_wait": limit(0.5)})
    made.start(wait=False)
    try:
        made.wait_until(lambda: made.request("GET", "/_ping")[0] == 200, "it answers")
        with pytest.raises(Refused, match=r"503: cannot do that now: cannot reach containerd at .*nothing\.sock"):
            made.create("p")
        assert made.info()["Moorage"]["Problem"]
    finally:
        assert made.end() == 0
    made.close()


def test_case_222_the_time_out_of_an_enable_counts_from_the_call(own: EngineProcess) -> None:
    own.create("slow", config("listen=20000"))
    first = threading.Thread(target=try_enable, args=(own, 30))
    first.start()
    own.until("slow", "starting")
    with pytest.raises(Refused) as refused:
        own.enable("slow", 1)
    assert refused.value.status == 409
    assert refused.value.message == (
        "cannot enable plugin slow:latest within 1 s: an earlier call is starting it and waits for its socket"
    )
    assert own.state("slow") == "starting"  # the first call continues
    own.disable("slow", force=True)
    first.join(limit(30))
    assert own.state("slow") == "disabled"


def try_enable(made: EngineProcess, within: int) -> None:
    with suppress(Refused):
        made.enable("slow", within)


def test_case_222_an_enable_goes_on_without_its_caller(own: EngineProcess) -> None:
    own.create("slow", config("listen=1500"))
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(own.socket))
    client.sendall(b"POST /plugins/slow/enable?timeout=30 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    own.until("slow", "starting")
    client.close()
    own.until("slow", "ready")
    assert own.inspect("slow")["Enabled"] is True


def test_m13_events_show_the_death_and_the_failure_of_an_enable_that_fails(own: EngineProcess) -> None:
    own.create("bad", config("never", "end=7@50"))
    with pytest.raises(Refused):
        own.enable("bad")
    _, raw = own.request("GET", events_until_now())
    seen = [json.loads(line) for line in raw.splitlines()]
    assert [each["Action"] for each in seen] == ["create", "die", "failed"]
    assert seen[1]["Actor"]["Attributes"]["code"] == "7"
    assert "it exited with status 7 before it accepted" in seen[2]["Actor"]["Attributes"]["error"]


def events_until_now() -> str:
    now = datetime.now(UTC).timestamp()
    return f"/events?since={now - 600:.3f}&until={now:.3f}"


# what the service manager gets


def test_case_247_ready_is_reported_when_what_runs_is_taken_over(own: EngineProcess, tmp_path: Path) -> None:
    own.create("p")
    own.enable("p")
    pid = own.more("p")["Pid"]
    kill_engine(own)
    notify = str(tmp_path / "notify")
    variables = {"MOORAGE_ROOT": str(own.root), "MOORAGE_EXEC_ROOT": str(own.exec_root), "NOTIFY_SOCKET": notify}
    with service_manager(notify) as notifications:
        with containerd_stopped(own):
            command = [sys.executable, "-m", "moorage", "serve"]
            own.child = subprocess.Popen(command, env={**environment(None), **variables}, start_new_session=True)
            own.wait_until(lambda: own.request("GET", "/_ping")[0] == 200, "it answers")
            assert not any("READY" in each for each in notifications.waiting())
        ready = notifications.until("READY", "1")
        assert ready["STATUS"] == "1 plugin: 1 ready"
        more = own.more("p")
        assert (more["State"], more["Pid"]) == ("ready", pid)


# signals during a shutdown


@pytest.mark.sampled(1)
@pytest.mark.parametrize("numbers", [("TERM", "TERM"), ("INT", "INT"), ("HUP", "TERM"), ("TERM", "HUP", "INT", "TERM")])
def test_case_246_further_signals_do_not_cut_a_shutdown_off(tmp_path: Path, numbers: tuple[str, ...]) -> None:
    with engine(tmp_path, live_restore=False) as made:
        child = made.child
        assert child is not None
        for name in ("p", "q"):
            made.create(name, config("ignore-term"))
            made.request_own("PUT", name, "policy", {"stop_timeout": 2})
            made.enable(name)
        pids = [made.more(name)["Pid"] for name in ("p", "q")]
        for at, name in enumerate(numbers, 1):
            child.send_signal(getattr(signal, f"SIG{name}"))
            if at <= 3:  # the third may be early, so a fourth may come too late
                what = "ending the plugins" if at == 1 else f"signal {at}: the shutdown continues"
                until_logged(made, f"got SIG{name}, {what}")
        assert child.wait(limit(60)) == 0
        assert not any(map(is_alive, pids))
        assert made.left() == []
        assert ("without waiting for plugins" in made.log.read_text()) is (len(numbers) >= 3)
        made.start()  # both are enabled still
        for name in ("p", "q"):
            made.until(name, "ready")


def until_logged(made: EngineProcess, words: str) -> None:
    wait_until(lambda: words in made.log.read_text(), words)


def test_case_246_two_signals_at_once_leave_plugins_running_with_live_restore(own: EngineProcess) -> None:
    own.create("p")
    own.enable("p")
    pid = own.more("p")["Pid"]
    assert own.child is not None
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        own.child.send_signal(number)
    assert own.child.wait(limit(30)) == 0
    own.child = None
    assert is_alive(pid)
    own.start()
    assert own.until("p", "ready")["Pid"] == pid
