import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage import errors
from moorage.plugins import (
    NO_OVERRIDES,
    Privilege,
    apply_settings,
    check_granted,
    check_policy,
    compute_privileges,
    effective_settings,
    parse_config,
    parse_policy,
    parse_privileges,
    privileges_to_api,
)
from moorage.plugins.model import Config
from moorage.plugins.privileges import describe_mount
from support.configs import parsed

pytestmark = pytest.mark.quick

briefly = settings(database=None, deadline=None, max_examples=100)


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
        {
            "Name": "bind mount",
            "Description": "read-write: the plugin can change its content",
            "Value": ["/b on /1, read-write (rbind)"],
        },
        {
            "Name": "bind mount",
            "Description": "read-write: the plugin can change its content",
            "Value": ["/a on /4, read-write (rbind)"],
        },
    ]


@pytest.mark.parametrize("kind", ["none", "null", "bridge", "", None])
def test_case_059_an_isolated_network_requests_nothing_and_nothing_is_a_list(kind: str | None) -> None:
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
    with pytest.raises(errors.Denied, match=r"not granted: mount \[/a\]; not requested: mount \[/b\]"):
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
    named = [each.name for each in compute_privileges(EVERYTHING) if each.name != "mount"]  # said by bind mount
    assert all(f"{name} [" in str(caught.value) for name in named)
    assert str(caught.value).count("capabilities [") == 2


@pytest.mark.parametrize("raw", [b"[]", b'{"mount": ["/"]}', b'{"mounts": "/"}', b'{"hostPid": "yes"}', b""])
def test_c07_a_policy_that_cannot_be_read_is_invalid(raw: bytes) -> None:
    with pytest.raises(errors.Invalid, match="cannot read the policy"):
        parse_policy(raw)


def mounted(**fields: Any) -> Config:
    return parsed(mounts=[{"destination": "/x"} | fields])


def described(**fields: Any) -> str:
    """What is requested beyond Docker's list for one mount, as a message has it."""
    docker, more = compute_privileges(mounted(**fields))
    assert docker.name == "mount"
    return str(more)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"source": "tmpfs", "type": "proc"}, "file system [mount of type proc from tmpfs on /x]"),
        (
            {"source": "overlay", "type": "overlay", "options": ["lowerdir=/root:/etc"]},
            "file system [mount of type overlay on /x with options lowerdir=/root:/etc]",
        ),
        (
            {"source": "tmpfs", "type": "tmpfs", "options": ["nosuid", "size=8g"]},
            "file system [mount of type tmpfs on /x with options nosuid,size=8g]",
        ),
        ({"source": "/dev/sda1", "type": "ext4"}, "file system [mount of type ext4 from /dev/sda1 on /x]"),
        (
            {"source": "h:/e", "type": "nfs", "destination": "/a/../x/"},
            "file system [mount of type nfs from h:/e on /x]",
        ),
        ({"source": "x", "type": ""}, 'file system [mount of type "" from x on /x]'),
        ({"source": "/s", "type": "bind", "options": ["bind", "ro"]}, "bind mount [/s on /x, read-only (bind,ro)]"),
        ({"source": "/s", "type": "none", "options": ["rbind", "ro"]}, "bind mount [/s on /x, read-only (rbind,ro)]"),
        ({"source": "/s", "type": "tmpfs", "options": ["bind"]}, "bind mount [/s on /x, read-write (bind)]"),
        ({"source": "/s", "type": "bind", "options": ["ro", "rw"]}, "bind mount [/s on /x, read-write (rbind,ro,rw)]"),
        ({"source": "/s", "type": "bind", "options": ["rro"]}, "bind mount [/s on /x, read-write (rbind,rro)]"),
        (
            {"source": "/s", "type": "bind", "options": ["rbind", "rshared"]},
            "bind mount [/s on /x, read-write (rbind,rshared)]",
        ),
        (
            {"source": "/a on /b, read-only (bind,ro)", "type": "bind"},
            'bind mount ["/a on /b, read-only (bind,ro)" on /x, read-write (rbind)]',
        ),
        (
            {"source": "t", "type": "tmpfs", "options": ["a,b"]},
            'file system [mount of type tmpfs from t on /x with options "a,b"]',
        ),
    ],
)
def test_s03_a_mount_is_requested_as_what_it_is(fields: dict[str, Any], text: str) -> None:
    assert described(**fields) == text


CHANGES: list[dict[str, Any]] = [
    {"source": "/t"},
    {"destination": "/y"},
    {"options": ["bind", "ro"]},
    {"options": ["rbind"]},
    {"options": ["rbind", "rshared"]},
    {"type": "tmpfs", "options": []},
    {"type": "proc", "options": []},
]


@pytest.mark.parametrize("change", CHANGES)
def test_s03_any_change_of_a_mount_has_to_be_granted_again(change: dict[str, Any]) -> None:
    before = {"source": "/s", "destination": "/x", "type": "bind", "options": ["bind"]}
    granted = compute_privileges(mounted(**before))
    check_granted(compute_privileges(mounted(**before)), granted)
    with pytest.raises(errors.Denied, match=r"not granted: .*(bind mount|file system)"):
        check_granted(compute_privileges(mounted(**before | change)), granted)


mount_fields = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["/a", "/b", "/a on /x, read-write (bind)", "/a (b)"]),
        "destination": st.sampled_from(["/x", "/y", "/x, read-only (bind,ro)"]),
        "type": st.sampled_from(["bind", "none", "tmpfs"]),
        "options": st.lists(st.sampled_from(["bind", "rbind", "ro", "rw", "a,b", "a", "b", "x y"]), max_size=3),
    }
)


@briefly
@given(mount_fields, mount_fields)
def test_s03_two_mounts_with_one_description_are_one_mount(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = mounted(**one).mounts[0], mounted(**other).mounts[0]
    if describe_mount(first) == describe_mount(second):
        assert first.is_bind is second.is_bind
        assert (first.source, first.destination) == (second.source, second.destination)
        if first.is_bind:
            assert first.bind_options == second.bind_options
        else:
            assert (first.type, first.options) == (second.type, second.options)


def test_case_239_privileges_are_those_of_the_settings_that_count() -> None:
    config = parsed(
        mounts=[{"name": "m", "settable": ["source"], "source": None, "destination": "/x", "type": "bind"}],
        linux={"devices": [{"name": "d", "settable": ["path"], "path": ""}]},
    )
    assert compute_privileges(config) == ()
    settings = effective_settings(config, apply_settings(config, NO_OVERRIDES, ["m=/etc", "d=/dev/fuse"]))
    assert [str(each) for each in compute_privileges(config, settings)] == [
        "mount [/etc]",
        "device [/dev/fuse]",
        "bind mount [/etc on /x, read-write (rbind)]",
    ]


@pytest.mark.parametrize(
    ("policy", "fields", "is_allowed"),
    [
        ({"fileSystems": ["tmpfs"]}, {"source": "tmpfs", "type": "tmpfs"}, True),
        ({"fileSystems": ["tmpfs"]}, {"source": "tmpfs", "type": "proc"}, False),
        ({"fileSystems": ["*"]}, {"source": "x", "type": "overlay"}, True),
        ({"mounts": ["/"]}, {"source": "/", "type": "tmpfs"}, False),
        ({"fileSystems": ["bind", "none"]}, {"source": "/etc", "type": "bind"}, False),
        ({"fileSystems": ["tmpfs"]}, {"source": "/etc", "type": "tmpfs", "options": ["bind"]}, False),
        ({"fileSystems": ["ext4"]}, {"source": "/dev/sda1", "type": "ext4"}, False),
        ({"fileSystems": ["ext4"], "devices": ["/dev/sda1"]}, {"source": "/dev/sda1", "type": "ext4"}, True),
        ({"fileSystems": ["ext4"], "devices": ["*"]}, {"source": "/dev/sda1", "type": "ext4"}, True),
        ({"readOnlyMounts": ["/srv/"]}, {"source": "/srv/a", "type": "bind", "options": ["bind", "ro"]}, True),
        ({"readOnlyMounts": ["/srv/"]}, {"source": "/srv/a", "type": "bind", "options": ["bind"]}, False),
        ({"readOnlyMounts": ["*"]}, {"source": "/srv/a", "type": "bind", "options": ["ro", "rw"]}, False),
        ({"mounts": ["/srv/"]}, {"source": "/srv/a", "type": "bind", "options": ["bind", "ro"]}, True),
    ],
)
def test_s05_a_policy_grants_by_kind(policy: dict[str, Any], fields: dict[str, Any], is_allowed: bool) -> None:
    assert policy_allows(policy, mounts=[{"destination": "/x"} | fields]) is is_allowed


def test_s05_a_policy_is_about_what_a_path_really_is() -> None:
    policy = parse_policy(b'{"mounts": ["/srv/"], "devices": ["/dev/fuse"]}')
    config = parsed(
        mounts=[{"source": "/srv/link", "destination": "/x", "type": "bind"}],
        linux={"devices": [{"path": "/srv/fuse"}]},
    )
    links = {"/srv/link": "/root", "/srv/fuse": "/dev/sda"}
    with pytest.raises(errors.Denied) as caught:
        check_policy(policy, config, resolve=lambda path: links.get(path, path))
    assert str(caught.value) == (
        "cannot grant unattended: this host's policy does not allow device [/srv/fuse], which is /dev/sda, "
        "bind mount [/srv/link on /x, read-write (rbind)], which is /root"
    )
    links = {"/srv/link": "/srv/data", "/srv/fuse": "/dev/fuse"}
    check_policy(policy, config, resolve=lambda path: links.get(path, path))


def test_s05_what_a_person_granted_is_no_matter_of_the_policy() -> None:
    config = parsed(mounts=[{"source": "/etc", "destination": "/x", "type": "bind"}], linux={"capabilities": ["BPF"]})
    attended = compute_privileges(config)
    check_policy(parse_policy(b"{}"), config, attended=attended)
    other = parsed(mounts=[{"source": "/etc", "destination": "/y", "type": "bind"}])
    with pytest.raises(errors.Denied, match="bind mount"):
        check_policy(parse_policy(b"{}"), other, attended=attended)


def test_s05_an_unknown_key_of_a_policy_says_which_is_near() -> None:
    with pytest.raises(errors.Invalid, match=r"capabilites: unknown key; did you mean capabilities\?"):
        parse_policy(b'{"capabilites": []}')
    with pytest.raises(errors.Invalid, match=r"filesystem: unknown key; did you mean fileSystems\?"):
        parse_policy(b'{"filesystem": []}')


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"source": "etc", "type": "bind"}, r"mounts\[0\].source: must be an absolute path on the host, not etc"),
        ({"source": "../x", "type": "tmpfs", "options": ["bind"]}, "must be an absolute path"),
        ({"source": "/s", "type": "proc\u202e"}, "mounts.0..type: must not have the control character .u202e"),
        ({"source": "/s", "type": "a b"}, "type: must be bind or the name of a file system"),
        ({"source": "sysfs", "type": "sysfs", "options": ["remount", "rw"]}, "options: must not have remount"),
        ({"source": "/s", "type": "bind", "destination": "/a/.."}, "destination: must be below the plugin's root"),
        ({"source": "/s\u001b[1A", "type": "bind"}, "source: must not have the control character .u001b"),
        ({"source": "/s", "name": "a\u200bb"}, "name: must not have the control character .u200b"),
        ({"source": "/s", "options": ["rw\r"]}, "options.0.: must not have the control character .u000d"),
        ({"source": "/s", "description": "a\u009b2K"}, "description: must not have the control character .u009b"),
    ],
)
def test_s13_s04_a_mount_that_is_not_what_it_seems_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.Invalid, match=text):
        mounted(**fields)


def test_s04_texts_for_people_may_have_lines_and_any_script() -> None:
    config = parsed(description="a\n\tb \u3000\u2764\ufe0f", env=[{"name": "A", "value": "1\n2"}])
    assert config.description.startswith("a\n\tb")


def test_s13_the_config_of_an_installed_plugin_can_still_be_read() -> None:
    raw = json.dumps(
        {
            "entrypoint": ["/p"],
            "interface": {"socket": "p.sock"},
            "description": "a\u001bb",
            "mounts": [{"source": "etc", "destination": "/x", "type": "bind"}],
        }
    ).encode()
    with pytest.raises(errors.Invalid, match=r"description: .*mounts"):
        parse_config(raw)
    assert parse_config(raw, is_stored=True).config.mounts[0].source == "etc"
