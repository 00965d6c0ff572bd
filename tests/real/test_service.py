"""``moorage serve`` as a service: what its manager and the journal hear, while plugins live on."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.engines import EngineProcess, config, engine
from support.foreground import environment
from support.service_manager import service_manager

pytestmark = [pytest.mark.real, pytest.mark.needs("static-cc")]


def serve(house: EngineProcess, journal: socket.socket, **more: str) -> "subprocess.Popen[bytes]":
    places = {"MOORAGE_ROOT": str(house.root), "MOORAGE_EXEC_ROOT": str(house.exec_root)}
    status = os.fstat(journal.fileno())
    more["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    command = [sys.executable, "-m", "moorage", "serve"]
    surroundings = {**environment(None), **places, **more}
    return subprocess.Popen(
        command, env=surroundings, stderr=journal.fileno(), stdout=journal.fileno(), start_new_session=True
    )


def test_the_manager_hears_of_a_start_of_plugins_and_of_the_end(tmp_path: Path) -> None:
    notify = str(tmp_path / "notify")
    ours, theirs = socket.socketpair()
    with engine(tmp_path) as house, service_manager(notify) as told, ours, theirs:
        house.create("hello", config())
        house.end()
        house.child = serve(house, theirs, NOTIFY_SOCKET=notify, WATCHDOG_USEC="1000000")
        ready = told.until("READY", "1")
        assert ready["STATUS"].startswith("1 plugin: 1 disabled")
        assert house.request("GET", "/_ping") == (200, b"OK")  # it answers as soon as it says so
        told.until("WATCHDOG", "1")
        house.wait_until(lambda: house.info()["Moorage"]["Problem"] == "", "containerd is found")
        house.enable("hello")
        told.until("STATUS", "1 plugin: 1 ready")
        pid, main = house.more("hello")["Pid"], house.child.pid
        assert house.end() == 0
        told.until("STOPPING", "1")
        assert told.senders == {main}  # neither containerd nor a plugin speaks for it
        assert ours.recv(100_000).startswith(b"<6>moorage: the API listens on ")
        house.start()
        house.wait_until(lambda: house.more("hello")["State"] == "ready", "the plugin is found again")
        assert house.more("hello")["Pid"] == pid
