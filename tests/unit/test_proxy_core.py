"""What the plugin proxy decides for one plugin, event by event. The random stories are in test_proxy_simulation."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from moorage.proxy.core import calls
from moorage.proxy.core.actions import (
    EXITED,
    Abort,
    Action,
    Call,
    Forget,
    Forward,
    Notify,
    Release,
    Reply,
    Save,
    Verify,
)
from moorage.proxy.core.ledger import Ledger, load
from moorage.proxy.core.plugin import MOST_CALLS, PluginCore
from moorage.proxy.protocol import PathRule, PluginTable
from support.proxy_simulator import EPOCH, table

pytestmark = pytest.mark.quick

Kind = TypeVar("Kind", bound=Action)


class Peer:
    """A core whose actions are collected; saving always works."""

    def __init__(self, of: PluginTable | None = None, ledger: bytes = b"{}") -> None:
        self.now = 0.0
        self.calls = 0
        self.disk = ledger
        self.actions: list[Action] = []
        self.volumes: list[tuple[str, ...]] = []
        """What was reported of volumes."""
        self.core = PluginCore(of or table(), load(ledger), EPOCH)
        self.do(self.core.configure(of or table(), self.now))

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Save):
                self.disk = action.ledger
                self.do(list(action.then))
            elif isinstance(action, Notify) and action.action.startswith("volume-"):
                self.volumes.append((action.action, *action.attributes.values()))
            else:
                self.actions.append(action)

    def take(self, kind: type[Kind]) -> Kind:
        """The only action of this kind since the last one was taken."""
        found = [each for each in self.actions if isinstance(each, kind)]
        assert len(found) == 1, self.actions
        self.actions.remove(found[0])
        return found[0]

    def has(self, kind: type[Action]) -> bool:
        return any(isinstance(each, kind) for each in self.actions)

    def call(self, path: str, consumer: str = "dockerd (pid 1)", **fields: str) -> int:
        self.calls += 1
        body = json.dumps(fields).encode() if fields else b""
        self.do(self.core.opened(Call(self.calls, path, body, consumer), self.now))
        return self.calls

    def stream(self, path: str) -> int:
        self.calls += 1
        self.do(self.core.opened(Call(self.calls, path, None, "dockerd (pid 1)"), self.now))
        return self.calls

    def answer(self, status: int = 200, **document: Any) -> None:
        self.do(self.core.answered(self.take(Forward).id, status, json.dumps(document).encode(), self.now))

    def breaks(self, *, was_sent: bool = True) -> None:
        self.do(self.core.broken(self.take(Forward).id, "closed the connection", self.now, was_sent=was_sent))

    def verify(self, problem: str = "", mount_point: str = "/host/mnt/v") -> None:
        self.do(self.core.verified(self.take(Verify).id, problem, mount_point, self.now))

    def mount(self, volume: str = "v", mount_id: str = "1", consumer: str = "podman (pid 1)") -> None:
        self.call(calls.MOUNT, consumer, Name=volume, ID=mount_id)
        self.answer(Mountpoint=f"/mnt/{volume}")
        self.verify(mount_point=f"/host/mnt/{volume}")
        assert self.reply() == (200, {"Mountpoint": f"/host/mnt/{volume}"})

    def reply(self) -> tuple[int, dict[str, Any]]:
        answer = self.take(Reply).answer
        return answer.status, json.loads(answer.body)

    def configure(self, *arguments: Any, **options: Any) -> None:
        self.do(self.core.configure(table(*arguments, **options), self.now))

    def passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.core.wake is not None and self.core.wake <= until:
            self.now = max(self.now, self.core.wake)
            self.do(self.core.tick(self.now))
        self.now = until


# ---- P03 to P06


@pytest.mark.parametrize("state", ["ready", "starting", "disabled", "failed"])
def test_p05_activate_is_never_forwarded(state: Any) -> None:
    peer = Peer(table(state))
    peer.call(calls.ACTIVATE)
    assert peer.reply() == (200, {"Implements": ["VolumeDriver"]})
    assert not peer.has(Forward)


def test_p06_an_empty_body_becomes_an_empty_object() -> None:
    peer = Peer()
    peer.call(calls.LIST)
    assert peer.take(Forward).body == b"{}"


@pytest.mark.parametrize(
    ("mode", "consumer", "listens"),
    [
        ("auto", "dockerd (pid 1)", False),
        ("auto", "podman (pid 1)", True),
        ("unlink", "podman (pid 1)", False),
        ("answer", "dockerd (pid 1)", True),
    ],
)
def test_p03_sockets_of_a_disabled_plugin_exist_where_podman_has_volumes(
    mode: Any, consumer: str, listens: bool
) -> None:
    peer = Peer()
    peer.call(calls.CREATE, consumer, Name="v")
    peer.answer()
    peer.configure("disabled", while_disabled=mode)
    assert peer.core.is_listening is listens
    assert peer.core.news().is_answering is listens
    assert Peer(table("disabled", while_disabled=mode), peer.disk).core.is_listening is listens
    peer.configure("ready", 2, while_disabled=mode)
    assert peer.core.is_listening


def test_p03_podman_needs_no_socket_any_more_after_it_removed_its_last_volume() -> None:
    peer = Peer()
    peer.call(calls.ACTIVATE, "podman (pid 1)")
    peer.call(calls.CREATE, "podman (pid 1)", Name="v")
    peer.answer()
    peer.call(calls.REMOVE, "podman (pid 2)", Name="v")
    peer.answer()
    peer.configure("disabled")
    assert not peer.core.is_listening


def test_h06_calls_to_an_unhealthy_plugin_fail_at_once_where_that_is_configured() -> None:
    unhealthy = replace(table(while_unhealthy="fail"), is_unhealthy=True)
    peer = Peer()
    peer.mount()
    peer.do(peer.core.configure(unhealthy, peer.now))
    peer.call(calls.GET, Name="v")
    assert peer.reply() == (503, {"Err": "plugin vol:latest is unhealthy"})
    peer.call(calls.ACTIVATE)
    assert peer.reply()[0] == 200
    peer.call(calls.UNMOUNT, Name="v", ID="1")  # what is mounted can be given back
    peer.answer()
    assert peer.reply()[0] == 200


def test_h06_calls_to_an_unhealthy_plugin_are_forwarded_by_default() -> None:
    peer = Peer(replace(table(), is_unhealthy=True))
    peer.call(calls.GET, Name="v")
    assert peer.has(Forward)


def test_p03_a_disabled_plugin_answers_at_once_from_what_is_known() -> None:
    peer = Peer()
    peer.mount()
    peer.call(calls.SCOPE)
    peer.answer(Capabilities={"Scope": "global"})
    assert peer.reply()[0] == 200
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer()
    peer.reply()
    peer.configure("disabled")
    for path, expected in (
        (calls.LIST, {"Volumes": [{"Name": "v", "Mountpoint": "/host/mnt/v"}], "Err": ""}),
        (calls.GET, {"Volume": {"Name": "v", "Mountpoint": "/host/mnt/v", "Status": {}}, "Err": ""}),
        (calls.PATH, {"Mountpoint": "/host/mnt/v", "Err": ""}),
        (calls.SCOPE, {"Capabilities": {"Scope": "global"}, "Err": ""}),
    ):
        peer.call(path, Name="v")
        assert peer.reply() == (200, expected)
    for path in (calls.MOUNT, calls.CREATE, calls.REMOVE):
        peer.call(path, Name="v", ID="1")
        status, document = peer.reply()
        assert status == 500
        assert "vol:latest is disabled; enable it" in document["Err"]
    peer.call(calls.GET, Name="other")
    assert peer.reply()[0] == 500
    assert not peer.has(Forward)


def test_p03_calls_that_wait_are_answered_when_the_plugin_is_disabled() -> None:
    peer = Peer(table("starting"))
    peer.call(calls.LIST)
    peer.call(calls.CREATE, Name="v")
    assert not peer.has(Reply)
    peer.configure("disabled")
    assert [each.answer.status for each in peer.actions if isinstance(each, Reply)] == [200, 500]


@pytest.mark.parametrize(("path", "seconds"), [(calls.LIST, 3), (calls.MOUNT, 20), (calls.CREATE, 20)])
def test_p04_a_call_waits_for_a_plugin_that_starts_but_not_for_ever(path: str, seconds: float) -> None:
    peer = Peer(table("starting"))
    peer.call(path, Name="v", ID="1")
    peer.passes(seconds - 0.01)
    assert not peer.actions
    peer.passes(0.01)
    status, document = peer.reply()
    assert status == 500
    assert "vol:latest is starting" in document["Err"]
    peer.configure("ready")
    assert not peer.actions  # it is not sent after its consumer got an error


def test_p04_a_call_that_waited_is_forwarded_when_the_plugin_is_ready() -> None:
    peer = Peer(table("starting"))
    peer.call(calls.GET, Name="v")
    peer.passes(2)
    peer.configure("ready")
    peer.passes(50)  # the plugin itself may take its time
    peer.answer(Volume={"Name": "v"})
    assert peer.reply()[0] == 200


@pytest.mark.parametrize("path", [calls.GET, calls.LIST, calls.PATH, calls.SCOPE, calls.MOUNT])
def test_p04_a_call_that_may_be_repeated_survives_the_plugins_restart(path: str) -> None:
    peer = Peer()
    peer.call(path, Name="v", ID="1")
    peer.breaks()
    peer.do(peer.core.exited(1, peer.now))
    peer.configure("starting")
    peer.passes(1)
    peer.configure("ready", 2)
    peer.answer(Mountpoint="/mnt/v")
    if path == calls.MOUNT:
        peer.verify()
    assert peer.reply()[0] == 200


@pytest.mark.parametrize("path", [calls.CREATE, calls.REMOVE, calls.START_LOGGING])
def test_p04_another_call_fails_when_the_plugin_exits(path: str) -> None:
    peer = Peer()
    peer.call(path, Name="v", File="/f")
    peer.breaks()
    peer.do(peer.core.exited(1, peer.now))
    status, document = peer.reply()
    assert status == 500
    assert "exited before it answered" in document["Err"]
    peer.configure("ready", 2)
    assert not peer.has(Forward)


def test_p04_a_mount_whose_plugin_exits_while_its_paths_are_compared_is_sent_again() -> None:
    peer = Peer()
    peer.call(calls.MOUNT, Name="v", ID="1")
    peer.answer(Mountpoint="/mnt/v")
    peer.verify(EXITED)  # which is known before the exit is
    assert not peer.has(Reply)
    assert not peer.has(Forward)
    peer.do(peer.core.exited(1, peer.now))
    peer.configure("starting", 1)
    peer.configure("ready", 2)
    peer.answer(Mountpoint="/mnt/v")
    peer.verify()
    assert peer.reply()[0] == 200


def test_p04_a_call_is_repeated_once_only() -> None:
    peer = Peer()
    peer.call(calls.GET, Name="v")
    peer.breaks()
    peer.passes(1)
    peer.breaks()
    peer.passes(1)
    assert peer.reply() == (500, {"Err": "cannot call VolumeDriver.Get of plugin vol:latest: closed the connection"})


def test_p04_a_call_that_could_not_be_sent_is_sent_as_soon_as_the_plugin_accepts() -> None:
    peer = Peer()
    peer.call(calls.CREATE, Name="v")
    peer.breaks(was_sent=False)
    peer.passes(0.1)
    peer.breaks(was_sent=False)
    peer.passes(0.1)
    peer.answer()
    assert peer.reply()[0] == 200
    peer.call(calls.CREATE, Name="v")
    for _ in range(1000):
        if peer.has(Reply):
            break
        peer.breaks(was_sent=False)
        peer.passes(0.05)
    assert "cannot be reached" in peer.reply()[1]["Err"]
    assert 20 < peer.now < 22


# ---- P07, P08


def test_p07_a_mount_is_answered_with_the_hosts_path_after_both_were_compared() -> None:
    peer = Peer()
    peer.call(calls.MOUNT, Name="v", ID="1")
    peer.answer(Mountpoint="/mnt/v")
    check = peer.take(Verify)
    assert (check.pid, check.inside, check.outside, check.below) == (101, "/mnt/v", "/host/mnt/v", "/host/mnt")
    assert not peer.has(Reply)
    peer.do(peer.core.verified(check.id, "", "/host/mnt/v", peer.now))
    assert peer.reply() == (200, {"Mountpoint": "/host/mnt/v"})
    assert load(peer.disk).mounts[0].phase == "mounted"


def test_p07_a_mount_that_is_not_propagated_is_undone_and_fails() -> None:
    peer = Peer()
    peer.call(calls.MOUNT, Name="v", ID="1")
    peer.answer(Mountpoint="/mnt/v")
    peer.verify("/mnt/v and /host/mnt/v differ: propagatedMount")
    assert peer.reply() == (500, {"Err": "/mnt/v and /host/mnt/v differ: propagatedMount"})
    undo = peer.take(Forward)
    assert (undo.path, json.loads(undo.body or b"")) == (calls.UNMOUNT, {"Name": "v", "ID": "1"})
    peer.do(peer.core.answered(undo.id, 200, b"{}", peer.now))
    assert load(peer.disk).mounts == []
    assert not peer.has(Reply)


@pytest.mark.parametrize("consumer", ["podman (pid 1)", "dockerd (pid 1)"])
def test_p11_an_unmount_that_was_interrupted_is_completed_for_dockerd_only(consumer: str) -> None:
    killed = Peer()
    killed.mount(consumer=consumer)
    killed.call(calls.UNMOUNT, consumer, Name="v", ID="1")
    killed.take(Forward)
    peer = Peer(ledger=killed.disk)
    again = peer.take(Forward)
    assert (again.path, json.loads(again.body or b"")) == (calls.MOUNT, {"Name": "v", "ID": "1"})
    peer.do(peer.core.answered(again.id, 200, b'{"Mountpoint": "/mnt/v"}', peer.now))
    peer.verify(mount_point="/host/mnt/v")
    if consumer.startswith("podman"):
        assert not peer.has(Forward), "podman takes the volume for mounted"
        assert load(peer.disk).mounts[0].phase == "mounted"
        return
    undo = peer.take(Forward)
    assert (undo.path, json.loads(undo.body or b"")) == (calls.UNMOUNT, {"Name": "v", "ID": "1"})
    peer.do(peer.core.answered(undo.id, 200, b"{}", peer.now))
    if peer.has(Release):
        peer.do(peer.core.released(peer.take(Release).id, "", peer.now))
    assert load(peer.disk).mounts == []
    peer.call(calls.UNMOUNT, consumer, Name="v", ID="1")
    assert not peer.has(Reply)
    peer.answer(500, Err="not mounted")
    assert peer.reply()[0] == 200


@pytest.mark.parametrize("end", ["killed", "expired", "left"])
@pytest.mark.parametrize("consumer", ["podman (pid 1)", "dockerd (pid 1)"])
def test_p11_an_unmount_that_waited_for_the_plugin_in_vain_is_done_for_dockerd_only(consumer: str, end: str) -> None:
    """dockerd has forgotten the mount, and the volume could never be removed; podman takes it for mounted."""
    peer = Peer()
    peer.mount(consumer=consumer)
    peer.do(peer.core.exited(1, peer.now))
    number = peer.call(calls.UNMOUNT, consumer, Name="v", ID="1")
    if end == "killed":
        peer = Peer(table("starting"), ledger=peer.disk)
    elif end == "left":
        peer.do(peer.core.left(number, peer.now))
    else:
        peer.passes(21)
        assert peer.reply()[0] == 500
    assert not peer.has(Forward)
    peer.configure("ready", 2)
    again = peer.take(Forward)
    assert again.path == calls.MOUNT
    peer.do(peer.core.answered(again.id, 200, b'{"Mountpoint": "/mnt/v"}', peer.now))
    peer.verify(mount_point="/host/mnt/v")
    if consumer.startswith("podman"):
        assert not peer.has(Forward)
        assert [each.is_returned for each in load(peer.disk).mounts] == [False]
        return
    undo = peer.take(Forward)
    assert (undo.path, json.loads(undo.body or b"")) == (calls.UNMOUNT, {"Name": "v", "ID": "1"})
    peer.do(peer.core.answered(undo.id, 200, b"{}", peer.now))
    peer.do(peer.core.released(peer.take(Release).id, "", peer.now))
    assert load(peer.disk).mounts == []


@pytest.mark.parametrize(("path", "known"), [(calls.GET, "v"), (calls.PATH, "v"), (calls.GET, "w"), (calls.PATH, "w")])
def test_p04_a_query_of_a_mounted_volume_succeeds_although_the_plugin_is_not_ready_in_time(
    path: str, known: str
) -> None:
    """dockerd begins an Unmount with a Get: where that failed it sent none, and the volume was in use for ever."""
    peer = Peer()
    peer.mount()
    peer.do(peer.core.exited(1, peer.now))
    peer.call(path, Name=known)
    peer.passes(2.9)
    assert not peer.has(Reply)
    peer.passes(0.2)
    status, document = peer.reply()
    assert status == (200 if known == "v" else 500)
    assert "/host/mnt/v" in str(document) or known == "w"


@pytest.mark.parametrize(
    ("owner", "remover", "is_undone"),
    [
        ("dockerd (pid 1)", "dockerd (pid 1)", True),
        ("dockerd (pid 1)", "dockerd (pid 2)", False),
        ("dockerd (pid 1)", "moorage (pid 3)", False),
        ("podman (pid 1)", "podman (pid 1)", False),
    ],
)
def test_p11_a_volume_that_dockerd_removes_is_unmounted_for_it_first(owner: str, remover: str, is_undone: bool) -> None:
    """It removes none that it has a user of, so it has forgotten the mount: its Get or its Unmount had failed."""
    peer = Peer()
    peer.mount(consumer=owner)
    peer.call(calls.REMOVE, remover, Name="v")
    first = peer.take(Forward)
    assert first.path == (calls.UNMOUNT if is_undone else calls.REMOVE)
    if is_undone:
        peer.do(peer.core.answered(first.id, 200, b"{}", peer.now))
        assert peer.take(Forward).path == calls.REMOVE
        assert load(peer.disk).mounts == []


def test_p11_an_unmount_that_waited_is_done_once_and_for_its_consumer() -> None:
    peer = Peer()
    peer.mount(consumer="dockerd (pid 1)")
    peer.do(peer.core.exited(1, peer.now))
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.configure("ready", 2)
    peer.answer(Mountpoint="/mnt/v")
    peer.verify(mount_point="/host/mnt/v")
    assert peer.take(Forward).call is not None
    assert not peer.has(Forward)


def test_p11_what_the_plugin_itself_refuses_to_unmount_stays_mounted() -> None:
    peer = Peer()
    peer.mount(consumer="dockerd (pid 1)")
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer(500, Err="device busy")
    assert peer.reply() == (500, {"Err": "device busy"})
    assert not peer.has(Forward)
    assert [(each.phase, each.is_returned) for each in load(peer.disk).mounts] == [("mounted", False)]


@pytest.mark.parametrize("how", ["interrupted", "left", "orphan"])
def test_v04_a_volume_is_removed_after_what_is_to_be_unmounted_of_it(how: str) -> None:
    """The plugin refused with "in use": its mount was to be undone still, or its Unmount under way for no consumer."""
    peer = Peer()
    if how == "left":
        peer.do(peer.core.left(peer.call(calls.MOUNT, Name="v", ID="1"), peer.now))
    else:
        peer.mount(consumer="dockerd (pid 1)")
        number = peer.call(calls.UNMOUNT, Name="v", ID="1")
        if how == "orphan":
            peer.do(peer.core.left(number, peer.now))
        else:
            peer = Peer(ledger=peer.disk)
    peer.call(calls.REMOVE, Name="v")
    if how != "orphan":
        peer.answer(Mountpoint="/mnt/v")
        peer.verify(mount_point="/host/mnt/v")
    assert peer.take(Forward).path == calls.UNMOUNT
    peer.call(calls.GET, Name="v")
    assert peer.take(Forward).path == calls.GET
    assert not peer.has(Forward)


def test_v04_a_removal_does_not_wait_for_a_mount_that_cannot_be_undone_now() -> None:
    peer = Peer()
    peer.do(peer.core.left(peer.call(calls.MOUNT, Name="v", ID="1"), peer.now))
    peer.answer(Mountpoint="/mnt/v")
    peer.verify()
    peer.call(calls.REMOVE, Name="v")
    peer.answer(500, Err="busy")
    assert peer.take(Forward).path == calls.REMOVE


@pytest.mark.parametrize("inside", ["/data/v", "/mnt/../etc", "relative", ""])
def test_p07_a_path_that_the_host_cannot_use_is_refused(inside: str) -> None:
    of = table()
    rules = (*of.paths, PathRule("/", "/host/root", "root"))
    peer = Peer(type(of)(**{name: getattr(of, name) for name in of.__struct_fields__} | {"paths": rules}))
    peer.call(calls.MOUNT, Name="v", ID="1")
    peer.answer(Mountpoint=inside)
    assert peer.reply()[0] == 500
    assert peer.take(Forward).path == calls.UNMOUNT


def test_p08_a_failed_mount_is_recorded_nowhere() -> None:
    peer = Peer()
    peer.call(calls.MOUNT, Name="v", ID="1")
    peer.answer(Err="no route to host")
    assert peer.reply() == (500, {"Err": "no route to host"})
    assert load(peer.disk).mounts == []


# ---- P09, P10


def test_p09_a_hung_plugin_fails_the_call_at_its_time_limit() -> None:
    peer = Peer(table(time_limits={"VolumeDriver.Get": 7.0}))
    peer.call(calls.GET, Name="v")
    forward = peer.take(Forward)
    peer.passes(6.9)
    assert not peer.actions
    peer.passes(0.2)
    assert peer.take(Abort).id == forward.id
    assert peer.reply() == (500, {"Err": "cannot call VolumeDriver.Get of plugin vol:latest: no answer within 7 s"})
    assert peer.core.answered(forward.id, 200, b"{}", peer.now) == []  # too late


def test_p09_only_some_calls_are_forwarded_at_once_and_all_are_answered() -> None:
    peer = Peer(table(at_once=10))
    for _ in range(1000):
        peer.call(calls.GET, Name="v")
    for done in range(1000):
        under_way = [each for each in peer.actions if isinstance(each, Forward)]
        assert len(under_way) == min(10, 1000 - done)
        peer.actions.remove(under_way[0])
        peer.do(peer.core.answered(under_way[0].id, 200, b'{"Volume": {}}', peer.now))
    assert sum(isinstance(each, Reply) for each in peer.actions) == 1000


def test_p09_calls_behind_a_hung_one_fail_in_time_too() -> None:
    peer = Peer(table(at_once=1))
    for _ in range(3):
        peer.call(calls.GET, Name="v")
    peer.passes(61)
    assert [each.answer.status for each in peer.actions if isinstance(each, Reply)] == [500, 500, 500]


def test_p09_more_calls_than_can_wait_fail_at_once() -> None:
    peer = Peer(table("starting"))
    for _ in range(MOST_CALLS):
        peer.call(calls.GET, Name="v")
    assert not peer.actions
    peer.call(calls.GET, Name="v")
    assert peer.reply()[0] == 503


def test_p09_a_consumer_that_leaves_frees_the_slot_of_its_query() -> None:
    peer = Peer(table(at_once=1))
    first = peer.call(calls.GET, Name="v")
    attempt = peer.take(Forward).id
    peer.call(calls.LIST)
    assert not peer.has(Forward)
    peer.do(peer.core.left(first, peer.now))
    assert peer.take(Abort).id == attempt
    assert peer.take(Forward).path == calls.LIST


def test_p10_an_endless_answer_has_no_limit_once_it_has_started_and_takes_no_slot() -> None:
    peer = Peer(table(at_once=1))
    call = peer.stream(calls.READ_LOGS)
    forward = peer.take(Forward)
    assert (forward.call, forward.body) == (call, None)
    peer.do(peer.core.started(forward.id, peer.now))
    peer.call(calls.GET, Name="v")
    peer.answer(Volume={})
    peer.reply()
    peer.passes(10_000)
    assert not peer.actions
    peer.do(peer.core.left(call, peer.now))
    assert peer.take(Abort).id == forward.id


# ---- P11


def restart(peer: Peer, run: int = 2, **options: Any) -> None:
    peer.do(peer.core.exited(run - 1, peer.now))
    peer.configure("starting", run - 1, **options)
    peer.configure("ready", run, **options)


def test_p11_mounts_are_made_again_before_calls_that_wait() -> None:
    peer = Peer()
    peer.mount()
    peer.do(peer.core.exited(1, peer.now))
    peer.configure("starting")
    peer.call(calls.PATH, Name="v")
    peer.call(calls.LIST)
    peer.configure("ready", 2)
    replay = peer.take(Forward)
    assert (replay.path, replay.call, json.loads(replay.body or b"")) == (calls.MOUNT, None, {"Name": "v", "ID": "1"})
    peer.do(peer.core.answered(replay.id, 200, b'{"Mountpoint": "/mnt/v"}', peer.now))
    check = peer.take(Verify)
    assert check.needs_mount
    assert not peer.has(Forward)
    peer.do(peer.core.verified(check.id, "", "/host/mnt/v", peer.now))
    assert [each.path for each in peer.actions if isinstance(each, Forward)] == [calls.PATH, calls.LIST]
    mount = peer.core.news().mounts[0]
    assert (mount.is_stale, mount.problem, mount.consumer) == (True, "", "podman (pid 1)")
    assert peer.take(Notify).attributes == {
        "call": "VolumeDriver.Mount",
        "path": "/host/mnt/v",
        "volume": "v",
        "id": "1",
    }


def test_p11_a_replay_that_fails_is_reported_and_tried_again() -> None:
    peer = Peer()
    peer.mount()
    restart(peer)
    peer.answer(Err="no route to host")
    assert peer.take(Notify).action == "replay-failed"
    assert peer.core.news().mounts[0].problem == "no route to host"
    peer.passes(2)
    peer.answer(Mountpoint="/mnt/v")
    peer.verify()
    assert peer.core.news().mounts[0].problem == ""
    assert peer.take(Notify).action == "replay"


def test_p11a_a_replay_after_which_nothing_is_mounted_has_failed() -> None:
    peer = Peer()
    peer.mount()
    restart(peer)
    peer.answer(Mountpoint="/mnt/v")
    peer.verify("nothing is mounted at /host/mnt/v")
    assert peer.core.news().mounts[0].problem == "nothing is mounted at /host/mnt/v"


def test_p11a_a_replay_at_another_path_has_failed() -> None:
    peer = Peer()
    peer.mount()
    restart(peer)
    peer.answer(Mountpoint="/mnt/other")
    peer.verify(mount_point="/host/mnt/other")
    assert "at /host/mnt/other now, not at /host/mnt/v" in peer.core.news().mounts[0].problem


def test_p11_a_hung_replay_delays_other_volumes_only_for_a_moment() -> None:
    peer = Peer()
    peer.mount()
    restart(peer)
    replay = peer.take(Forward)
    peer.call(calls.MOUNT, Name="v", ID="2")
    peer.call(calls.GET, Name="w")
    assert not peer.actions
    peer.passes(2.5)
    assert json.loads(peer.take(Forward).body or b"") == {"Name": "w"}
    peer.passes(18)
    assert "mounts were not made again in time" in peer.reply()[1]["Err"]
    peer.do(peer.core.answered(replay.id, 200, b'{"Mountpoint": "/mnt/v"}', peer.now))
    peer.verify()
    peer.call(calls.GET, Name="v")
    assert json.loads(peer.take(Forward).body or b"") == {"Name": "v"}


def test_p11_a_plugin_that_restores_itself_gets_nothing_again() -> None:
    peer = Peer(table(replays=False))
    peer.mount()
    restart(peer, replays=False)
    assert not peer.has(Forward)
    assert peer.core.news().mounts[0].is_stale


def test_p11_logs_and_metrics_are_started_again_until_they_are_stopped() -> None:
    peer = Peer()
    peer.call(calls.START_LOGGING, File="/run/docker/logging/a")
    peer.answer()
    peer.call(calls.START_METRICS)
    peer.answer()
    assert peer.core.news().log_files == ("/run/docker/logging/a",)
    peer.actions.clear()
    restart(peer)
    again = [each for each in peer.actions if isinstance(each, Forward)]
    assert [each.path for each in again] == [calls.START_LOGGING, calls.START_METRICS]
    assert json.loads(again[0].body or b"") == {"File": "/run/docker/logging/a"}
    for each in again:
        peer.do(peer.core.answered(each.id, 200, b"{}", peer.now))
    peer.actions.clear()
    for path in (calls.STOP_LOGGING, calls.STOP_METRICS):
        peer.call(path, File="/run/docker/logging/a")
        peer.answer()
        assert peer.reply()[0] == 200
    restart(peer, 3)
    assert not peer.actions


def test_p11_the_ledger_survives_the_proxy() -> None:
    peer = Peer()
    peer.mount()
    peer.call(calls.START_LOGGING, File="/f")
    peer.answer()
    after = Peer(table("ready", 1), peer.disk)
    assert not after.actions  # this run knows everything
    assert after.core.news() == peer.core.news()
    after = Peer(table("ready", 2), peer.disk)
    assert [each.path for each in after.actions if isinstance(each, Forward)] == [calls.MOUNT, calls.START_LOGGING]


def test_p11_a_mount_that_no_consumer_received_is_undone_by_the_next_proxy() -> None:
    peer = Peer()
    peer.call(calls.MOUNT, Name="v", ID="1")
    after = Peer(table(), peer.disk)
    assert after.core.news().mounts == ()
    assert after.take(Forward).path == calls.UNMOUNT


def test_p11_a_mount_whose_consumer_has_left_is_undone_unless_another_one_waits_for_it() -> None:
    peer = Peer()
    first = peer.call(calls.MOUNT, Name="v", ID="1")
    peer.do(peer.core.left(first, peer.now))
    second = peer.call(calls.MOUNT, Name="v", ID="1")
    peer.answer(Mountpoint="/mnt/v")
    peer.verify()
    assert peer.take(Reply).call == second
    assert not peer.has(Forward)
    third = peer.call(calls.MOUNT, Name="w", ID="1")
    peer.do(peer.core.left(third, peer.now))
    peer.answer(Mountpoint="/mnt/w")
    peer.verify()
    assert peer.take(Forward).path == calls.UNMOUNT


def test_p11_an_unmount_that_was_lost_in_a_crash_succeeds() -> None:
    peer = Peer()
    peer.mount()
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.breaks()
    peer.do(peer.core.exited(1, peer.now))
    peer.do(peer.core.released(peer.take(Release).id, "", peer.now))
    assert peer.reply()[0] == 200
    peer.configure("ready", 2)
    assert not peer.has(Forward)
    assert load(peer.disk).mounts == []


def test_p11_an_unmount_that_could_not_be_sent_to_a_plugin_that_exited_is_sent_after_the_mount_was_made_again() -> None:
    peer = Peer()
    peer.mount()
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.breaks(was_sent=False)  # the plugin's exit is not known yet
    assert load(peer.disk).mounts[0].phase == "mounted"
    restart(peer)
    assert peer.take(Forward).path == calls.MOUNT
    assert not peer.has(Reply)


def test_p11_an_unmount_of_a_mount_that_could_not_be_made_again_succeeds() -> None:
    peer = Peer()
    peer.mount()
    restart(peer)
    peer.answer(Err="no route to host")
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer(Err="not mounted")
    peer.do(peer.core.released(peer.take(Release).id, "", peer.now))
    assert peer.reply()[0] == 200


def test_p11_an_unmount_of_an_unknown_mount_is_the_plugins_to_answer() -> None:
    peer = Peer()
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer(Err="not mounted")
    assert peer.reply() == (500, {"Err": "not mounted"})


def test_p11a_an_unmount_that_may_have_been_done_or_not_is_followed_by_a_mount() -> None:
    peer = Peer()
    peer.mount()
    peer.call(calls.UNMOUNT, "podman (pid 1)", Name="v", ID="1")
    peer.take(Forward)
    peer.passes(61)
    assert peer.reply()[0] == 500  # so podman takes the volume for mounted, and sends no Mount for the next container
    assert peer.take(Forward).path == calls.MOUNT


def test_p11a_covered_mount_points_are_released_after_the_last_unmount_and_before_its_answer() -> None:
    peer = Peer()
    peer.mount()
    peer.mount(mount_id="2")
    restart(peer)
    for _ in range(2):
        peer.answer(Mountpoint="/mnt/v")
        peer.verify()
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer()
    assert peer.reply()[0] == 200
    assert not peer.has(Release)
    peer.call(calls.UNMOUNT, Name="v", ID="2")
    peer.answer()
    release = peer.take(Release)
    assert release.paths == ("/host/mnt/v",)
    peer.call(calls.MOUNT, Name="v", ID="3")
    assert not peer.has(Reply)
    assert not peer.has(Forward)  # its mount could be released by mistake
    peer.do(peer.core.released(release.id, "", peer.now))
    assert peer.reply()[0] == 200
    assert peer.take(Forward).path == calls.MOUNT


def test_p11a_a_mount_that_never_was_covered_is_unmounted_without_a_release() -> None:
    peer = Peer()
    peer.mount()
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer()
    assert peer.reply()[0] == 200
    assert not peer.actions


def test_p11_volumes_options_are_never_stored() -> None:
    peer = Peer()
    peer.do(peer.core.opened(Call(1, calls.CREATE, b'{"Name": "v", "Opts": {"password": "s3cret"}}', "podman"), 0.0))
    peer.answer()
    assert load(peer.disk).volumes == {"v": ""}
    assert b"s3cret" not in peer.disk


@pytest.mark.parametrize("unsaved", ["before", "after"])
def test_p11_a_mount_that_cannot_be_recorded_fails(unsaved: str) -> None:
    peer = Peer()

    def do(actions: list[Action], saves: Callable[[Save], bool]) -> None:
        for action in actions:
            if not isinstance(action, Save):
                peer.actions.append(action)
            elif saves(action):
                do(list(action.then), saves)
            else:
                do(list(action.otherwise), saves)
                do(peer.core.unsaved(action, peer.now), lambda _: True)

    saves: Callable[[Save], bool] = lambda _: unsaved == "after"  # noqa: E731 - it is as short as its name
    do(peer.core.opened(Call(1, calls.MOUNT, b'{"Name": "v", "ID": "1"}', "podman"), 0.0), saves)
    if unsaved == "after":
        do(peer.core.answered(peer.take(Forward).id, 200, b'{"Mountpoint": "/mnt/v"}', 0.0), saves)
        do(peer.core.verified(peer.take(Verify).id, "", "", 0.0), lambda _: False)
    status, document = peer.reply()
    assert status == 500
    assert "record cannot be saved" in document["Err"]
    assert not peer.has(Forward)
    peer.passes(6)
    assert peer.has(Forward) is (unsaved == "after")  # it is undone


def test_p03_a_plugin_that_is_removed_answers_every_call_and_leaves_nothing() -> None:
    peer = Peer()
    peer.mount()
    waiting = peer.call(calls.GET, Name="v")
    attempt = peer.take(Forward).id
    peer.do(peer.core.remove())
    assert peer.take(Abort).id == attempt
    assert peer.take(Reply).call == waiting
    assert peer.take(Release).paths == ("/host/mnt/v",)
    assert peer.has(Forget)


def test_p12_each_mount_names_its_consumer() -> None:
    peer = Peer()
    peer.mount(consumer="podman (pid 812)")
    mount = peer.core.news().mounts[0]
    assert (mount.volume, mount.id, mount.path, mount.consumer) == ("v", "1", "/host/mnt/v", "podman (pid 812)")
    assert Ledger().outstanding() == ()


# ---- V05


def test_v05_each_change_of_a_volume_is_reported_once_and_without_its_options() -> None:
    peer = Peer()
    peer.call(calls.CREATE, "podman (pid 1)", Name="v", Opts="s3cr3t")
    peer.answer()
    peer.reply()
    peer.mount()
    peer.mount()  # podman's retry: it has this mount
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer()
    peer.reply()
    peer.call(calls.UNMOUNT, Name="v", ID="1")
    peer.answer()
    peer.reply()
    peer.call(calls.REMOVE, Name="v")
    peer.answer()
    peer.reply()
    peer.call(calls.REMOVE, Name="v")
    peer.answer(500, Err="no such volume")
    assert peer.volumes == [
        ("volume-create", "v", "podman (pid 1)"),
        ("volume-mount", "v", "podman (pid 1)"),
        ("volume-unmount", "v", "podman (pid 1)"),
        ("volume-remove", "v"),
    ]


def test_v05_a_mount_that_no_consumer_received_is_not_reported() -> None:
    peer = Peer()
    call = peer.call(calls.MOUNT, "podman (pid 1)", Name="v", ID="1")
    peer.do(peer.core.left(call, peer.now))
    peer.answer(Mountpoint="/mnt/v")
    peer.verify()
    assert peer.volumes == []
