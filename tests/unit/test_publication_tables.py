"""What the plugin proxy must know of a plugin, and what a plugin makes of its reports."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.engine.consumers.holders import mount_holders
from moorage.engine.consumers.tables import find_host_path, find_mount_points, make_table, with_host_paths
from moorage.engine.lifecycle import Event
from moorage.engine.plugin import PluginState
from moorage.engine.run.plugin_run import PluginRun
from moorage.engine.run.standby import Standby
from moorage.engine.store import Store
from moorage.engine.telemetry import EngineCounters, EventLog
from moorage.engine.values import PluginRecord, Publication
from moorage.health.supervision import HealthSupervision
from moorage.logs.reader import PluginLog
from moorage.proxy.protocol import PathRule, PluginNews, VolumeMount
from moorage.runs.directories import PluginDirectories
from moorage.runs.http_call import PluginResponse
from moorage.runs.plan import PlanOptions
from moorage.runs.removal import MountPoint

pytestmark = pytest.mark.quick

ID = "ab" * 32
AT = datetime(2026, 1, 1, tzinfo=UTC)
DIRECTORY = Path("/run/docker/plugins")
CONFIG = {
    "entrypoint": ["/p"],
    "interface": {"types": ["docker.volumedriver/1.0"], "socket": "p.sock"},
    "propagatedMount": "/mnt",
    "mounts": [
        {"name": "a", "type": "bind", "source": "/srv/a", "destination": "/mnt/a", "settable": ["source"]},
        {"name": "t", "type": "tmpfs", "source": "tmpfs", "destination": "/tmp"},
        {"name": "off", "type": "bind", "source": "", "destination": "/off", "settable": ["source"]},
    ],
}


class Plugin(PluginState):
    """A plugin in any state."""

    health = cast(HealthSupervision, SimpleNamespace(state=None, is_unhealthy=False))
    standby = cast(Standby, SimpleNamespace(pid=None))

    def become(self, *events: Event) -> "Plugin":
        for event in events:
            self._move(event)
        return self


def make(tmp_path: Path, document: Mapping[str, object] = CONFIG, **fields: object) -> Plugin:
    made = PluginRecord(ID, "v:1", "v:1", json.dumps(document), "v", "sha256:0", "overlayfs", ID, AT)
    record = PluginRecord(**{**{name: getattr(made, name) for name in made.__struct_fields__}, **fields})
    directories, log = PluginDirectories(ID, Path("/run/m"), Path("/data/propagated-mount")), PluginLog(tmp_path / ID)
    return Plugin(record, directories, log, Store(tmp_path), EventLog(), EngineCounters(), PlanOptions())


def mount(
    volume: str, consumer: str = "podman (pid 812)", point: str = "", id: str = "1", path: str = ""
) -> VolumeMount:
    return VolumeMount(volume, id, path or point or f"/x/{volume}", consumer, AT, mount_point=point)


def test_p07_a_table_has_the_sources_that_are_set_and_the_longest_rules_win(tmp_path: Path) -> None:
    plugin = make(tmp_path)
    table = make_table(plugin, DIRECTORY, -1, is_known=True, news=None)
    assert table.paths == (
        PathRule("/mnt/a", "/srv/a", "bind"),
        PathRule("/mnt", "/data/propagated-mount", "propagated"),
        PathRule("/", f"/run/m/p/{ID[:12]}/root", "root"),
    )
    assert (table.runtime, table.socket, table.types) == (
        f"/run/m/p/{ID[:12]}",
        "s/p.sock",
        ("docker.volumedriver/1.0",),
    )


def test_p01_a_table_has_the_paths_of_all_names(tmp_path: Path) -> None:
    plugin = make(tmp_path, published=Publication(("v:1", "x/y"), "adm", 0o660))
    table = make_table(plugin, DIRECTORY, 4, is_known=True, news=None)
    assert table.published == ("/run/docker/plugins/v:1.sock", "/run/docker/plugins/x/y.sock")
    assert (table.mode, table.gid) == (0o660, 4)


@pytest.mark.parametrize(
    ("events", "enabled", "state"),
    [
        ((), False, "disabled"),
        ((), True, "starting"),
        ((Event.START,), True, "starting"),
        ((Event.START, Event.ACCEPTED), True, "ready"),
        ((Event.START, Event.ACCEPTED, Event.EXITED), True, "starting"),
        ((Event.START, Event.ACCEPTED, Event.GAVE_UP), True, "failed"),
        ((Event.START, Event.ACCEPTED, Event.STOP), True, "starting"),
        ((Event.START, Event.ACCEPTED, Event.STOP), False, "disabled"),
    ],
)
def test_p04_calls_wait_while_an_enabled_plugin_is_not_ready(
    tmp_path: Path, events: tuple[Event, ...], enabled: bool, state: str
) -> None:
    plugin = make(tmp_path, enabled=enabled).become(*events)
    assert make_table(plugin, DIRECTORY, -1, is_known=True, news=None).state == state


def test_a_plugin_whose_run_is_not_known_yet_is_in_the_state_of_the_last_news(tmp_path: Path) -> None:
    plugin = make(tmp_path, enabled=True, run=7)
    news = PluginNews(ID, state="ready", run=7, pid=812)
    table = make_table(plugin, DIRECTORY, -1, is_known=False, news=news)
    assert (table.state, table.run, table.pid) == ("ready", 7, 812)
    for other in (PluginNews(ID, state="ready", run=6, pid=812), None):
        table = make_table(plugin, DIRECTORY, -1, is_known=False, news=other)
        assert (table.state, table.pid) == ("starting", 0), "that was another run"


def test_a_ready_plugin_has_the_pid_of_its_run(tmp_path: Path) -> None:
    plugin = make(tmp_path, enabled=True, run=1)
    run = PluginRun(f"{ID}.1")
    run.pid = 4711
    plugin.runner._run = run
    plugin.become(Event.START)
    assert make_table(plugin, DIRECTORY, -1, is_known=True, news=None).pid == 0
    plugin.become(Event.ACCEPTED)
    assert make_table(plugin, DIRECTORY, -1, is_known=True, news=None).pid == 4711


def test_p11a_mount_points_are_below_directories_that_the_plugin_shows(tmp_path: Path) -> None:
    plugin = make(tmp_path)
    mounts = [
        mount("one", point="/data/propagated-mount/one"),
        mount("one", point="/data/propagated-mount/one", id="2"),
        mount("two", point="/srv/a/x/two"),
        mount("root", point=f"/run/m/p/{ID[:12]}/root/three"),
        mount("plain"),
        mount("deep", point="/data/propagated-mount/deep", path="/data/propagated-mount/deep/a/deep"),
        mount("link", point="/really/propagated-mount/link", path="/data/propagated-mount/link/a"),
        mount("other", point="/data/propagated-mount2/x"),
    ]
    assert find_mount_points(plugin, mounts) == (
        MountPoint(Path("/data/propagated-mount"), "one"),
        MountPoint(Path("/srv/a"), "x/two"),
        MountPoint(Path("/data/propagated-mount"), "deep"),
        MountPoint(Path("/data/propagated-mount"), "link"),
    )


def test_p12_consumers_with_mounts_are_holders(tmp_path: Path) -> None:
    plugin = make(tmp_path)
    plugin.take_mounts((mount("data", id="1"), mount("data", "podman (pid 9)", id="2"), mount("x", "backup")))
    assert [each.owner for each in plugin.holders()] == ["backup: volume x, 1 mount", "podman: volume data, 2 mounts"]
    with pytest.raises(errors.Conflict, match="in use by backup: volume x, 1 mount, podman: volume data, 2 mounts"):
        plugin.check_unused(force=False)
    with pytest.raises(errors.Conflict, match="in use by"):
        plugin.check_unmounted(force=False)
    plugin.check_unused(force=True)
    assert plugin.record.holders == (), "mounts are not saved as holders"
    assert plugin.view().mounts
    plugin.take_mounts(())
    plugin.check_unused(force=False)


def test_p12_a_consumer_with_several_volumes_is_one_holder() -> None:
    (holder,) = mount_holders([mount("b"), mount("a", id="2"), mount("a", id="3")])
    assert holder.owner == "podman: volumes a, b, 3 mounts"


# paths

ROOT, PROPAGATED = f"/run/m/p/{ID[:12]}/root", "/data/propagated-mount"


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("/mnt/v", PROPAGATED),
        ("/mnt/v/", PROPAGATED),
        ("/mnt/v/a/b", f"{PROPAGATED}/a/b"),
        ("/mnt//v/./a/../b", f"{PROPAGATED}/b"),
        ("//mnt/v", PROPAGATED),
        ("/mnt/v2", f"{ROOT}/mnt/v2"),
        ("/mnt", f"{ROOT}/mnt"),
        ("/mnt/v/../x", f"{ROOT}/mnt/x"),
        ("/../../etc", f"{ROOT}/etc"),
        ("/", ROOT),
        ("/mnt/v/srv/x", "/srv/a/x"),
        ("/mnt/v/srv2", f"{PROPAGATED}/srv2"),
    ],
)
@pytest.mark.parametrize("propagated", ["/mnt/v", "/mnt/v/", "mnt/v"])
def test_m15_p07_a_path_inside_has_one_outside_by_whole_components(
    tmp_path: Path, inside: str, outside: str, propagated: str
) -> None:
    mounts = [{"type": "bind", "source": "/srv/a", "destination": "/mnt/v/srv"}]
    plugin = make(tmp_path, {**CONFIG, "propagatedMount": propagated, "mounts": mounts})
    assert find_host_path(plugin, inside).path == outside


def test_m15_with_the_root_as_propagated_mount_all_is_there(tmp_path: Path) -> None:
    plugin = make(tmp_path, {**CONFIG, "propagatedMount": "/", "mounts": []})
    assert find_host_path(plugin, "/a").path == f"{PROPAGATED}/a"


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "v", "mnt"]), max_size=6))
def test_m15_no_path_leads_out_of_both_directories(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    plugin = make(tmp_path_factory.getbasetemp(), {**CONFIG, "propagatedMount": "/a/v", "mounts": []})
    outside = find_host_path(plugin, "/" + "/".join(parts)).path
    assert os.path.normpath(outside) == outside
    assert any(f"{outside}/".startswith(f"{each}/") for each in (ROOT, PROPAGATED))


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        ("VolumeDriver.Mount", {"Mountpoint": "/mnt/x"}, {"Mountpoint": f"{PROPAGATED}/x"}),
        ("VolumeDriver.Get", {"Volume": {"Mountpoint": "/mnt/x"}}, {"Volume": {"Mountpoint": f"{PROPAGATED}/x"}}),
        ("VolumeDriver.Mount", {"Err": "no /mnt/x", "Mountpoint": "/mnt/x"}, None),
        ("LogDriver.Capabilities", {"Mountpoint": "/mnt/x"}, None),
    ],
)
def test_p07_a_call_has_the_paths_of_the_host(
    tmp_path: Path, method: str, body: dict[str, object], expected: dict[str, object] | None
) -> None:
    response = PluginResponse(200, json.dumps(body).encode(), "application/json")
    made = with_host_paths(make(tmp_path), method, response)
    if expected is None:
        assert made is response
    else:
        assert json.loads(made.body) == expected
