"""Publishing and volumes over the API: what every client of it sees."""

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from moorage import errors
from moorage.engine.consumers.volumes import VolumeService, mount_id
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginView
from moorage.plugins import parse_config
from moorage.timeouts import Timeouts
from support.api_client import CONFIG, ApiClient
from support.fake_backend import FakeBackend
from support.fake_volumes import FakeVolumeDriver

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("unblocked")]

PLUGINS, VOLUMES = "/moorage/v1/plugins", "/moorage/v1/volumes"


async def ready(api: ApiClient, name: str, config: dict[str, Any] | None = None) -> str:
    id = await api.create(name, config)
    assert (await api.request("POST", f"/plugins/{name}/enable")).status == 200
    return id


async def shown(api: ApiClient, name: str) -> Any:
    return (await api.request("GET", f"/plugins/{name}/json")).json["Moorage"]


# ---------------------------------------------------------------------------------------- publish


async def test_p01_a_plugin_is_published_by_its_own_name_and_inspect_shows_it(api: ApiClient) -> None:
    await api.create("vieux/sshfs")
    assert (await shown(api, "vieux/sshfs"))["Published"] is None
    answer = await api.request("POST", f"{PLUGINS}/vieux/sshfs/publish")
    assert answer.status == 200
    assert answer.json["Moorage"]["Published"] == {
        "Names": ["vieux/sshfs:latest"],
        "Group": "",
        "Mode": "0600",
        "WhileDisabled": "auto",
        "WhileUnhealthy": "forward",
        "Replay": True,
        "AtOnce": 100,
        "TimeLimits": {},
        "Podman": None,
    }
    assert (await shown(api, "vieux/sshfs"))["Published"]["Names"] == ["vieux/sshfs:latest"]


async def test_p01_the_answer_of_inspect_can_be_sent_back(api: ApiClient) -> None:
    await api.create("p")
    body = {"Names": ["a", "b/c"], "Group": "staff", "WhileDisabled": "answer",
            "WhileUnhealthy": "fail", "Replay": False, "AtOnce": 7,
            "TimeLimits": {"VolumeDriver.Mount": 2.5}, "Podman": False}  # fmt: skip
    answer = await api.request("POST", f"{PLUGINS}/p/publish", body)
    assert answer.json["Moorage"]["Published"] == body | {"Mode": "0660"}


async def test_p01_unpublish_removes_what_publish_made(api: ApiClient) -> None:
    await api.create("p")
    await api.request("POST", f"{PLUGINS}/p/publish", {"names": ["x"]})
    answer = await api.request("POST", f"{PLUGINS}/p/unpublish")
    assert (answer.status, answer.body) == (204, b"")
    assert (await shown(api, "p"))["Published"] is None
    assert (await api.request("POST", f"{PLUGINS}/p/unpublish")).status == 409


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"names": "x"}, "of a wrong type"),
        ({"while_disabled": "never"}, "Invalid enum value 'never'"),
        ({"time_limits": {"VolumeDriver.Mount": "x"}}, "of a wrong type"),
        ({"nonsense": 1}, "there is no field 'nonsense'"),
    ],
)
async def test_p01_a_wrong_request_is_refused(api: ApiClient, body: dict[str, Any], said: str) -> None:
    await api.create("p")
    answer = await api.request("POST", f"{PLUGINS}/p/publish", body)
    assert answer.status == 400
    assert said in answer.message


# ---------------------------------------------------------------------------------------- volumes


async def test_v01_a_volume_is_created_listed_inspected_and_removed(api: ApiClient, backend: FakeBackend) -> None:
    await ready(api, "d")
    made = await api.request("POST", VOLUMES, {"name": "data", "driver": "d", "options": {"size": "1g"}})
    assert (made.status, made.json["Driver"], made.json["Mountpoint"]) == (201, "d:latest", "/mnt/data")
    assert ("d:latest", "Create", {"Name": "data", "Opts": {"size": "1g"}}, "moorage volume") in backend.volume_calls
    listed = (await api.request("GET", VOLUMES)).json
    assert [(each["Name"], each["Driver"]) for each in listed["Volumes"]] == [("data", "d:latest")]
    assert listed["Failures"] == []
    one = (await api.request("GET", f"{VOLUMES}/data")).json
    assert (one["Scope"], one["Status"], one["CreatedAt"]) == ("global", {"size": 7}, "2026-01-02T03:04:05Z")
    assert (await api.request("DELETE", f"{VOLUMES}/data")).status == 204
    missing = await api.request("GET", f"{VOLUMES}/data")
    assert (missing.status, missing.message) == (404, "no such volume: data")


async def test_v01_names_with_slashes_and_words_of_the_api_are_names(api: ApiClient) -> None:
    await ready(api, "d")
    for name in ("a/b", "mount", "x/unmount"):
        assert (await api.request("POST", VOLUMES, {"name": name, "driver": "d"})).status == 201
        assert (await api.request("GET", f"{VOLUMES}/{name}")).json["Name"] == name
        mounted = await api.request("POST", f"{VOLUMES}/{name}/mount", {"owner": "me"})
        assert mounted.json == {"Mountpoint": f"/mnt/{name}", "Driver": "d:latest"}


async def test_v01_a_driver_that_does_not_answer_delays_nothing_and_is_named(backend: FakeBackend) -> None:
    for name in ("good", "failing", "hung"):
        backend.plugins = {**backend.plugins, name: _driver(backend, name)}
    good, failing, hung = FakeVolumeDriver(), FakeVolumeDriver(), FakeVolumeDriver()
    good.volumes["data"] = {}
    failing.failure, hung.is_stuck = errors.Unavailable("it is starting"), True
    backend.drivers = {"good": good, "failing": failing, "hung": hung}
    service = VolumeService(backend, Timeouts(volume_list=0.05))
    listing = await service.list()
    assert [each.name for each in listing.volumes] == ["data"]
    assert listing.failures == {"failing": "it is starting", "hung": "no answer within 0.05 s"}
    assert (await service.inspect("data")).driver == "good"
    with pytest.raises(errors.Unavailable, match="driver failing did not answer: it is starting; driver hung"):
        await service.inspect("other")


def _driver(backend: FakeBackend, name: str) -> PluginView:
    raw = b'{"entrypoint": ["/p"], "interface": {"socket": "p.sock", "types": ["docker.volumedriver/1.0"]}}'
    view = backend.add(f"{name}:latest", parse_config(raw).config)
    del backend.plugins[view.id]
    return replace(view, id=name, name=name, enabled=True, state=State.READY)


async def test_v01_a_volume_of_two_drivers_needs_its_driver_named(api: ApiClient) -> None:
    for driver in ("a", "b"):
        await ready(api, driver)
        await api.request("POST", VOLUMES, {"name": "data", "driver": driver})
    answer = await api.request("GET", f"{VOLUMES}/data")
    assert answer.status == 400
    assert "a:latest, b:latest have one; give --driver" in answer.message
    assert (await api.request("GET", f"{VOLUMES}/data?driver=b")).json["Driver"] == "b:latest"


async def test_v01_only_enabled_volume_drivers_are_drivers(api: ApiClient) -> None:
    await api.create("off")
    await ready(api, "log", CONFIG | {"interface": {"types": ["docker.logdriver/1.0"], "socket": "p.sock"}})
    for driver, status, said in (
        ("", 400, "without its driver"),
        ("nope", 404, "not found"),
        ("off", 409, "it is disabled"),
        ("log", 400, "it is no volume driver"),
    ):
        answer = await api.request("POST", VOLUMES, {"name": "x", "driver": driver})
        assert (answer.status, said in answer.message) == (status, True), answer.message
    assert (await api.request("GET", VOLUMES)).json == {"Volumes": [], "Failures": []}
    assert (await api.request("POST", VOLUMES, {"driver": "off"})).status == 400


async def test_v02_a_mount_is_idempotent_per_owner_and_listed_with_it(api: ApiClient, backend: FakeBackend) -> None:
    await ready(api, "d")
    await api.request("POST", VOLUMES, {"name": "data", "driver": "d"})
    for _ in range(2):
        answer = await api.request("POST", f"{VOLUMES}/data/mount", {"owner": "web.service"})
        assert answer.json == {"Mountpoint": "/mnt/data", "Driver": "d:latest"}
    await api.request("POST", f"{VOLUMES}/data/mount")
    sent = [(body["ID"], consumer) for _, method, body, consumer in backend.volume_calls if method == "Mount"]
    assert sent == [(mount_id("web.service"), "web.service"), (mount_id("data"), "data")]
    mounts = (await api.request("GET", f"{VOLUMES}/data")).json["Mounts"]
    assert [(each["Consumer"], each["Path"]) for each in mounts] == [
        ("web.service", "/mnt/data"),
        ("data", "/mnt/data"),
    ]
    assert (await shown(api, "d"))["Mounts"] == mounts
    assert (await api.request("POST", f"{VOLUMES}/data/unmount", {"owner": "web.service"})).status == 204
    mounts = (await api.request("GET", f"{VOLUMES}/data")).json["Mounts"]
    assert [each["Consumer"] for each in mounts] == ["data"]


@pytest.mark.parametrize("owner", ["a\nb", "ä", "x" * 5000, "a\x00b"])
async def test_v02_an_owner_is_a_line_of_printable_text(api: ApiClient, owner: str) -> None:
    await ready(api, "d")
    answer = await api.request("POST", f"{VOLUMES}/data/mount", {"owner": owner})
    assert (answer.status, "an owner is a line of printable ASCII" in answer.message) == (400, True)


async def test_v04_a_volume_in_use_is_not_removed_unless_forced(api: ApiClient, backend: FakeBackend) -> None:
    await ready(api, "d")
    await api.request("POST", VOLUMES, {"name": "data", "driver": "d"})
    for owner in ("web.service", "backup"):
        await api.request("POST", f"{VOLUMES}/data/mount", {"owner": owner})
    answer = await api.request("DELETE", f"{VOLUMES}/data")
    assert answer.status == 409
    assert answer.message == "cannot remove volume data: it is in use by web.service, backup"
    assert (await api.request("DELETE", f"{VOLUMES}/data?force=1")).status == 204
    assert [method for _, method, _, _ in backend.volume_calls][-3:] == ["Unmount", "Unmount", "Remove"]
    assert (await shown(api, "d"))["Mounts"] == []


async def test_v05_secrets_of_options_are_in_no_log_and_no_message(
    api: ApiClient, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    id = await ready(api, "d")
    backend.drivers[id] = FakeVolumeDriver()
    backend.drivers[id].refusal = "cannot mount with password=s3cr3t: host unreachable"
    body = {"name": "data", "driver": "d", "options": {"sshcmd": "me@host", "password": "s3cr3t", "API_KEY": "k3y"}}
    with caplog.at_level(logging.DEBUG):
        answer = await api.request("POST", VOLUMES, body)
    assert answer.status == 500
    assert "password=********: host unreachable" in answer.message
    assert "sshcmd=me@host password=******** API_KEY=********" in caplog.text
    assert "s3cr3t" not in caplog.text
    assert "k3y" not in caplog.text
