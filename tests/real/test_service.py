"""``moorage serve`` as a service: what its manager and the journal get, while plugins keep running."""

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
    roots = {"MOORAGE_ROOT": str(house.root), "MOORAGE_EXEC_ROOT": str(house.exec_root)}
    status = os.fstat(journal.fileno())
    more["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    command = [sys.executable, "-m", "moorage", "serve"]
    surroundings = {**environment(None), **roots, **more}
    return subprocess.Popen(
        command, env=surroundings, stderr=journal.fileno(), stdout=journal.fileno(), start_new_session=True
    )


def test_the_manager_hears_of_a_start_of_plugins_and_of_the_end(tmp_path: Path) -> None:
    notify = str(tmp_path / "notify")
    near, far = socket.socketpair()
    with engine(tmp_path) as house, service_manager(notify) as notifications, near, far:
        house.create("hello", config())
        house.end()
        house.child = serve(house, far, NOTIFY_SOCKET=notify, WATCHDOG_USEC="1000000")
        ready = notifications.until("READY", "1")
        assert ready["STATUS"].startswith("1 plugin: 1 disabled")
        assert house.request("GET", "/_ping") == (200, b"OK")  # it answers as soon as it says so
        notifications.until("WATCHDOG", "1")
        house.wait_until(lambda: house.info()["Moorage"]["Problem"] == "", "containerd is found")
        house.enable("hello")
        notifications.until("STATUS", "1 plugin: 1 ready")
        pid, main = house.more("hello")["Pid"], house.child.pid
        assert house.end() == 0
        notifications.until("STOPPING", "1")
        assert notifications.senders == {main}  # neither containerd nor a plugin speaks for it
        assert near.recv(100_000).startswith(b"<6>moorage: the API listens on ")
        house.start()
        house.wait_until(lambda: house.more("hello")["State"] == "ready", "the plugin is found again")
        assert house.more("hello")["Pid"] == pid
