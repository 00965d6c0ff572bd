import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage import errors
from moorage.plugins import (
    Privilege,
    check_granted,
    check_policy,
    compute_privileges,
    parse_config,
    parse_policy,
    parse_privileges,
    privileges_to_api,
)
from moorage.plugins.model import Config

pytestmark = pytest.mark.quick

briefly = settings(database=None, deadline=None, max_examples=100)


def parsed(**fields: Any) -> Config:
    minimal = {"entrypoint": ["/p"], "interface": {"socket": "p.sock"}}
    return parse_config(json.dumps(minimal | fields).encode()).config


EVERYTHING = parsed(
    network={"type": "host"},
    ipchost=True,
    pidhost=True,
    mounts=[
        {"source": "/b", "destination": "/1", "type": "bind"},
        {"source": "", "destination": "/2"},
        {"source": None, "destination": "/3"},
        {"source": "/a", "destination": "/4", "options": ["rbind"]},
    ],
    linux={
        "allowAllDevices": True,
        "capabilities": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"],
        "devices": [{"path": "/dev/fuse"}, {"path": None}, {"path": ""}],
    },
)


def test_c07_everything_in_dockers_order_and_words() -> None:
    assert privileges_to_api(compute_privileges(EVERYTHING)) == [
        {"Name": "network", "Description": "permissions to access a network", "Value": ["host"]},
        {"Name": "host ipc namespace", "Description": "allow access to host ipc namespace", "Value": ["true"]},
        {"Name": "host pid namespace", "Description": "allow access to host pid namespace", "Value": ["true"]},
        {"Name": "mount", "Description": "host path to mount", "Value": ["/b"]},
        {"Name": "mount", "Description": "host path to mount", "Value": ["/a"]},
        {"Name": "device", "Description": "host device to access", "Value": ["/dev/fuse"]},
        {"Name": "allow-all-devices", "Description": "allow 'rwm' access to all devices", "Value": ["true"]},
        {
            "Name": "capabilities",
            "Description": "list of additional capabilities required",
            "Value": ["CAP_SYS_ADMIN", "CAP_NET_ADMIN"],
        },
    ]


@pytest.mark.parametrize("kind", ["none", "null", "bridge", "", None])
def test_case_059_an_isolated_network_asks_nothing_and_nothing_is_a_list(kind: str | None) -> None:
    config = parsed(network={"type": kind}, propagatedMount="/v", user={"uid": 1})
    assert privileges_to_api(compute_privileges(config)) == []


@pytest.mark.parametrize("body", [b"", b"  \n", b"null", b"[]"])
def test_case_059_no_body_null_and_an_empty_list_grant_nothing_alike(body: bytes) -> None:
    granted = parse_privileges(body)
    check_granted(compute_privileges(parsed()), granted)
    with pytest.raises(errors.Denied, match="incorrect privileges: not granted: allow-all-devices"):
        check_granted(compute_privileges(parsed(linux={"allowAllDevices": True})), granted)


@pytest.mark.parametrize(
    "body", [b"{}", b'"x"', b"[1]", b'[{"Name": 1}]', b'[{"Value": "host"}]', b"[", b"[]x", b"\xff"]
)
def test_c07_grants_that_cannot_be_read_are_invalid(body: bytes) -> None:
    with pytest.raises(errors.Invalid, match="cannot read the privileges"):
        parse_privileges(body)


def test_c07_grants_are_read_in_any_letter_case() -> None:
    made = parse_privileges(b'[{"name": "network", "VALUE": ["host", null], "Description": null}]')
    assert made == (Privilege("network", "", ("host",)),)


ALL_DEVICES = Privilege("allow-all-devices", "", ("true",))


@pytest.mark.parametrize(
    "granted",
    [
        [Privilege("network", "", ("host",))],
        [],
        [ALL_DEVICES, Privilege("network", "", ("host",))],
        [Privilege("allow-all-devices", "", ("false",))],
        [Privilege("allow-all-devices", "", ())],
        [Privilege("allow-all-devices", "", ("true", "true"))],
        [ALL_DEVICES, ALL_DEVICES],
        [Privilege("Allow-All-Devices", "", ("true",))],
    ],
)
def test_case_058_any_difference_is_denied(granted: list[Privilege]) -> None:
    required = compute_privileges(parsed(linux={"allowAllDevices": True}))
    with pytest.raises(errors.Denied, match=r"^incorrect privileges: "):
        check_granted(required, granted)
    check_granted(required, [ALL_DEVICES])


def test_case_058_the_order_of_entries_and_values_and_descriptions_say_nothing() -> None:
    required = compute_privileges(EVERYTHING)
    given_back = [Privilege(each.name, "x", tuple(reversed(each.value))) for each in reversed(required)]
    check_granted(required, given_back)


def test_case_058_the_refusal_names_what_is_missing_and_what_is_too_much() -> None:
    required = [Privilege("mount", "", ("/a",)), Privilege("mount", "", ("/a",))]
    with pytest.raises(errors.Denied, match=r"not granted: mount \[/a\]; not asked for: mount \[/b\]"):
        check_granted(required, [Privilege("mount", "", ("/a",)), Privilege("mount", "", ("/b",))])


privileges = st.lists(
    st.builds(
        Privilege,
        st.sampled_from(["network", "mount", "device"]),
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=3),
        st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple),
    ),
    max_size=4,
)


@briefly
@given(privileges, st.randoms())
def test_case_058_every_permutation_is_granted_and_every_change_of_one_is_denied(
    required: list[Privilege], random: Any
) -> None:
    shuffled = [Privilege(each.name, "", tuple(random.sample(each.value, len(each.value)))) for each in required]
    random.shuffle(shuffled)
    check_granted(required, shuffled)
    for index in range(len(required)):
        for changed in ([], [Privilege("device", "", ("other",))], [required[index]] * 2):
            with pytest.raises(errors.Denied):
                check_granted(required, [*required[:index], *changed, *required[index + 1 :]])


@briefly
@given(privileges)
def test_c07_what_the_api_shows_is_what_it_takes_back(required: list[Privilege]) -> None:
    body = json.dumps(privileges_to_api(required)).encode()
    assert list(parse_privileges(body)) == required


def policy_allows(policy: dict[str, Any], **fields: Any) -> bool:
    try:
        check_policy(parse_policy(json.dumps(policy).encode()), parsed(**fields))
    except errors.Denied:
        return False
    return True


def bind(source: str) -> dict[str, Any]:
    return {"mounts": [{"source": source, "destination": "/d", "type": "bind"}]}


def test_c07_a_policy_grants_what_it_lists_and_nothing_else() -> None:
    assert policy_allows({})
    assert not policy_allows({}, network={"type": "host"})
    assert policy_allows({"network": ["host"]}, network={"type": "host"})
    assert not policy_allows({"hostPid": False}, pidhost=True)
    assert policy_allows({"HOSTPID": True}, pidhost=True)
    assert not policy_allows({"hostPid": True}, ipchost=True)
    assert policy_allows({"hostIpc": True}, ipchost=True)
    assert not policy_allows({"devices": ["*"]}, linux={"allowAllDevices": True})
    assert policy_allows({"allowAllDevices": True}, linux={"allowAllDevices": True})
    assert policy_allows({"devices": ["/dev/snd/"]}, linux={"devices": [{"path": "/dev/snd/timer"}]})
    assert policy_allows({"capabilities": ["sys_admin"]}, linux={"capabilities": ["CAP_SYS_ADMIN"]})
    assert not policy_allows({"capabilities": ["sys_admin"]}, linux={"capabilities": ["SYS_ADMIN", "BPF"]})


@pytest.mark.parametrize(
    ("source", "is_allowed"),
    [
        ("/srv", True),
        ("/srv/", True),
        ("/srv/a/b", True),
        ("/srv2", False),
        ("/", False),
        ("/srv/../etc", False),
        ("/srv/a/..", False),
        ("/opt/x", True),
        ("/opt/x/y", False),
        ("//srv", False),
        ("srv", False),
    ],
)
def test_c07_a_policys_paths_are_whole_components(source: str, is_allowed: bool) -> None:
    assert policy_allows({"mounts": ["/srv/", "/opt/x"]}, **bind(source)) is is_allowed


def test_c07_a_policy_grants_a_mount_that_is_no_bind_only_with_a_star() -> None:
    overlay = {"mounts": [{"source": "/srv", "destination": "/d", "type": "overlay", "options": ["lowerdir=/"]}]}
    assert not policy_allows({"mounts": ["/"]}, **overlay)
    assert policy_allows({"mounts": ["*"]}, **overlay)
    assert policy_allows({"mounts": ["/"]}, **bind("/etc"))


def test_c07_a_policys_refusal_names_all_of_it() -> None:
    with pytest.raises(errors.Denied) as caught:
        check_policy(parse_policy(b"{}"), EVERYTHING)
    assert all(f"{each.name} [" in str(caught.value) for each in compute_privileges(EVERYTHING))
    assert str(caught.value).count("capabilities [") == 2


@pytest.mark.parametrize("raw", [b"[]", b'{"mount": ["/"]}', b'{"mounts": "/"}', b'{"hostPid": "yes"}', b""])
def test_c07_a_policy_that_cannot_be_read_is_invalid(raw: bytes) -> None:
    with pytest.raises(errors.Invalid, match="cannot read the policy"):
        parse_policy(raw)
