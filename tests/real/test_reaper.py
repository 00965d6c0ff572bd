"""What tests of the plugin proxy leave on the machine when they are interrupted: nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moorage.host.mounts import mount_state
from support import leftovers
from support.foreground import wait_until
from support.limits import limit

pytestmark = pytest.mark.real

_PROGRAM = """
import os, sys, time
from pathlib import Path
from moorage.host.mounts import mount_placeholder
from support.proxy_process import Plugin, ProxyProcess, call

directory = Path(sys.argv[1])
plugin = Plugin(directory)
plugin.start()
proxy = ProxyProcess(directory)
proxy.start()
proxy.publish(plugin)
assert call(proxy.path(plugin), "VolumeDriver.Mount", Name="fs", ID="1")[0] == 200
mount_placeholder(os.open(plugin.directory / "mnt/fs", os.O_PATH))
print(proxy.pid, proxy.guard, plugin.process.pid, flush=True)
time.sleep(1000)
"""


def test_p11a_a_test_that_is_killed_leaves_no_placeholder_and_no_process(tmp_path: Path) -> None:
    paths = os.pathsep.join(each for each in sys.path if each)
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    ) as test:
        assert test.stdout is not None
        pids = [int(each) for each in test.stdout.readline().split()]
        assert mount_state(tmp_path / "vol/mnt/fs") == "placeholder"
        test.kill()
    assert len(pids) == 3
    wait_until(lambda: leftovers.mounts_below(tmp_path) == [], "nothing is mounted", limit(20))
    wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids), "all exit", limit(20))
