"""The plugin proxy's calls, answers and paths, as functions."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage import errors
from moorage.proxy.core import answers, calls
from moorage.proxy.core.paths import to_host
from moorage.proxy.protocol import PathRule

pytestmark = pytest.mark.quick

RULES = (
    PathRule("/", "/run/moorage/p/1/rootfs", "root"),
    PathRule("/mnt", "/run/moorage/p/1/propagated", "propagated"),
    PathRule("/mnt/data", "/srv/data", "bind"),
    PathRule("/etc/x", "/srv/x/", "bind"),
)


def normalized(path: str, status: int, body: bytes) -> tuple[int, dict[str, object]]:
    answer, _ = answers.normalize(path, "vol", status, body)
    return answer.status, json.loads(answer.body)


def test_p05_activate_is_answered_from_the_types_of_the_config() -> None:
    types = ("docker.volumedriver/1.0", "docker.logdriver/1.0", "docker.authz/1.0", "example.other/2", "docker.authz/2")
    assert json.loads(calls.activation(types)) == {"Implements": ["VolumeDriver", "LogDriver", "authz", "other"]}
    kinds = ("networkdriver", "ipamdriver", "metricscollector", "secretprovider")
    named = json.loads(calls.activation([f"docker.{kind}/1.0" for kind in kinds]))["Implements"]
    assert named == ["NetworkDriver", "IpamDriver", "MetricsCollector", "secretprovider"]


def test_p09_volume_calls_have_the_limits_of_docker_unless_the_plugin_has_its_own() -> None:
    assert [calls.time_limit(path, {}) for path in (calls.CREATE, calls.MOUNT, calls.GET, "/AuthZPlugin.AuthZReq")] == [
        120,
        120,
        60,
        60,
    ]
    assert calls.time_limit(calls.MOUNT, {"VolumeDriver.Mount": 5}) == 5


def test_p04_queries_wait_less_than_podman_does() -> None:
    assert {calls.wait_limit(path) for path in (calls.GET, calls.LIST, calls.PATH, calls.SCOPE)} == {3}
    assert {calls.wait_limit(path) for path in (calls.MOUNT, calls.CREATE, "/NetworkDriver.Join")} == {20}


def test_p04_only_calls_without_a_second_effect_are_repeated() -> None:
    may = {path for path in (calls.GET, calls.LIST, calls.PATH, calls.SCOPE, calls.MOUNT) if calls.is_repeatable(path)}
    assert len(may) == 5
    assert not any(
        calls.is_repeatable(path)
        for path in (calls.CREATE, calls.REMOVE, calls.UNMOUNT, calls.START_LOGGING, "/AuthZPlugin.AuthZReq")
    )


@pytest.mark.parametrize("body", [b"x", b"[]", b'{"Name": 1}', b'{"Name": "a', b"\xff"])
def test_p08_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(errors.Invalid, match=r"VolumeDriver\.Mount"):
        calls.arguments(calls.MOUNT, body)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"Err": "no space"}', (500, "no space")),
        (200, b'{"err": "no space"}', (500, "no space")),
        (200, b'{"Error": "no space"}', (500, "no space")),
        (404, b'{"Err": "no such volume"}', (404, "no such volume")),
        (500, b"Traceback", (500, "plugin vol answered 500 to VolumeDriver.Mount: Traceback")),
        (302, b"", (500, "plugin vol answered 302 to VolumeDriver.Mount")),
        (204, b"", (500, "plugin vol answered 204 to VolumeDriver.Mount")),
        (200, b"<html>", (500, "plugin vol answered VolumeDriver.Mount with what is no JSON object: <html>")),
        (200, b"", (500, "plugin vol answered VolumeDriver.Mount with what is no JSON object: nothing")),
        (200, b"[1]", (500, "plugin vol answered VolumeDriver.Mount with what is no JSON object: [1]")),
        (200, b'{"Err": {"code": 5}}', (500, '{"code":5}')),
    ],
)
def test_p08_a_failure_is_a_failed_status_with_err(status: int, body: bytes, expected: tuple[int, str]) -> None:
    code, text = expected
    assert normalized(calls.MOUNT, status, body) == (code, {"Err": text})


@pytest.mark.parametrize(
    "body", [b'{"Mountpoint": "/mnt/a"}', b'{"Mountpoint": "/mnt/a", "Err": ""}', b'{"Err": null}']
)
def test_p08_a_success_passes_unchanged(body: bytes) -> None:
    answer, _ = answers.normalize(calls.MOUNT, "vol", 200, body)
    assert (answer.status, json.loads(answer.body)) == (200, json.loads(body))


@pytest.mark.parametrize("body", [b"", b"null", b" \n"])
def test_p08_a_call_without_a_result_may_be_answered_with_nothing(body: bytes) -> None:
    assert normalized(calls.REMOVE, 200, body)[0] == 200


@given(st.binary(max_size=300), st.integers(100, 599))
def test_p08_whatever_comes_is_a_readable_answer(body: bytes, status: int) -> None:
    code, document = normalized(calls.GET, status, body)
    assert isinstance(document, dict)
    assert (code == 200) is not (code >= 400 and document["Err"] != "")


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("/mnt/v", "/run/moorage/p/1/propagated/v"),
        ("/mnt", "/run/moorage/p/1/propagated"),
        ("/mnt//./v/", "/run/moorage/p/1/propagated/v"),
        ("/mnt2/v", "/run/moorage/p/1/rootfs/mnt2/v"),
        ("/mnt/data/a", "/srv/data/a"),
        ("/mnt/database", "/run/moorage/p/1/propagated/database"),
        ("/etc/x/y", "/srv/x/y"),
        ("/", "/run/moorage/p/1/rootfs"),
    ],
)
def test_p07_the_longest_rule_of_whole_components_wins(inside: str, outside: str) -> None:
    found = to_host(RULES, inside)
    assert found is not None
    assert found.path == outside


@pytest.mark.parametrize("inside", ["/mnt/../etc", "mnt/v", "", "/mnt/..", "/mnt/v\0"])
def test_p07_a_path_that_could_lead_outside_has_no_path_on_the_host(inside: str) -> None:
    assert to_host(RULES, inside) is None


def test_p07_of_equal_rules_the_propagated_one_wins() -> None:
    found = to_host((PathRule("/mnt", "/bind", "bind"), PathRule("/mnt", "/propagated", "propagated")), "/mnt/a")
    assert found is not None
    assert found.path == "/propagated/a"


def test_p07_paths_in_get_and_list_are_of_the_host_and_empty_where_there_is_none() -> None:
    paths = [
        {"Name": "a", "Mountpoint": "/mnt/a"},
        {"Name": "b", "Mountpoint": ""},
        {"Name": "c", "mountpoint": "/../c"},
    ]
    body = json.dumps({"Volumes": paths}).encode()
    answer, document = answers.normalize(calls.LIST, "vol", 200, body)
    answer, document = answers.host_paths(calls.LIST, RULES, answer, document)
    assert [(each.name, each.mountpoint) for each in answers.volumes(calls.LIST, document)] == [
        ("a", "/run/moorage/p/1/propagated/a"),
        ("b", ""),
        ("c", ""),
    ]
    assert json.loads(answer.body) == document


@pytest.mark.parametrize(
    "body",
    [
        b'{"Mountpoint": "/mnt/a", "mountpoint": "/etc"}',
        b'{"mountPOINT": "/etc", "Mountpoint": "/mnt/a", "MountPoint": null, "mountpoint": ""}',
        b'{"Mountpoint": "/etc", "Mountpoint": "/mnt/a"}',
    ],
)
def test_p07_an_answer_has_each_key_once_and_as_it_was_read(body: bytes) -> None:
    answer, document = answers.normalize(calls.MOUNT, "vol", 200, body)
    answer, document = answers.host_paths(calls.MOUNT, RULES, answer, document)
    assert [key.lower() for key in json.loads(answer.body)] == ["mountpoint"]
    assert json.loads(answer.body) == document


def test_p09_an_answer_with_too_many_values_is_not_read() -> None:
    body = b'{"Volumes": [' + b"0," * 200_000 + b"0]}"
    assert normalized(calls.LIST, 200, body)[0] == 500


def test_p11_a_long_text_keeps_its_beginning_and_its_end() -> None:
    short = answers.shorten("a" * 1_000_000 + "z")
    assert (short[0], short[-1], len(short) < 2100) == ("a", "z", True)
    assert answers.shorten("a" * 2000) == "a" * 2000


@pytest.mark.parametrize(
    "path", ["/a%2Eb", "//a", "/a/", "/./a", "/a/../b", "a", "*", "http://a/b", "/a b", "/a\n", "/" + "a" * 300]
)
def test_p07_a_path_with_another_spelling_is_no_call(path: str) -> None:
    assert not calls.is_plain(path)


@pytest.mark.parametrize("path", [calls.ACTIVATE, calls.MOUNT, "/AuthZPlugin.AuthZReq", "/v1.2/own-call_x~y"])
def test_p07_a_plain_path_is_a_call(path: str) -> None:
    assert calls.is_plain(path)


@pytest.mark.parametrize("path", [calls.CREATE, calls.REMOVE, calls.MOUNT, calls.UNMOUNT, calls.PATH, calls.GET])
def test_p07_a_call_that_lost_its_body_reaches_no_plugin(path: str) -> None:
    with pytest.raises(errors.Invalid, match="its body has no Name"):
        calls.arguments(path, b"{}")
    with pytest.raises(errors.Invalid, match="its body has no File"):
        calls.arguments(calls.START_LOGGING, b'{"Name": "v"}')
    assert calls.arguments(calls.LIST, b"{}").volume == ""


@pytest.mark.parametrize("body", [b'{"name": "v"}', b'{"Name": "v", "NAME": "w"}', b'{"Name": "v", "id": "a"}'])
def test_p11_a_name_in_another_spelling_is_refused(body: bytes) -> None:
    with pytest.raises(errors.Invalid, match=r"its body has the key '(name|NAME|id)'; write it as '(Name|ID)'"):
        calls.arguments(calls.MOUNT, body)
