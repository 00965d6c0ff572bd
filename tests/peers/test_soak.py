"""A minute of what scripts/soak does for an hour."""

import json
import os
import sys

import pytest

from peers.consumers import Consumers, Make
from peers.soak import Soak
from support import leftovers
from support.engines import EngineProcess
from support.limits import limit

pytestmark = [pytest.mark.real, pytest.mark.needs("dockerd", "podman", "docker", "busybox", "static-cc")]

SECONDS = float(os.environ.get("MOORAGE_SOAK_SECONDS", "55"))


@pytest.mark.timeout(limit(SECONDS + 240))
def test_p04_p18_volume_operations_go_on_while_engine_proxy_and_plugin_are_killed(
    consumers: Consumers, publisher: EngineProcess, make: Make
) -> None:
    driver = make("volume", "how=fuse")
    assert consumers.docker("volume", "ls", "-q") == ""  # dockerd runs before the time begins
    driver.post("/VolumeDriver.Create", b'{"Name": "always"}')
    soak = Soak(consumers, publisher, driver, SECONDS)
    soak.run()
    sys.stdout.write("\n".join([soak.summary(), *soak.unexplained()]) + "\n")
    assert soak.unexplained() == [], soak.summary()
    assert all(each < limit(1) for each in soak.notices), soak.notices
    assert soak.lost == []
    assert all(seconds < limit(60) for seconds, _ in soak.longest.values()), soak.summary()
    # a consumer that hangs, or has stopped, would not fail
    assert all(soak.done[owner] > SECONDS / limit(10) for owner in ("podman", "docker", "program")), soak.summary()
    # podman and the program forget what they could not return: of such volumes, and no others, something may be left
    left = [each.split() for each in driver.mounts()]
    failed = {each.owner for each in soak.failures}
    assert [(volume, id) for volume, id in left if volume not in failed and id not in failed | {"soak"}] == []
    for volume, id in left:
        driver.post("/VolumeDriver.Unmount", json.dumps({"Name": volume, "ID": id}).encode())
    assert [each for each in leftovers.mounts_below(consumers.machine.directory) if "propagated-mount/" in each] == []
