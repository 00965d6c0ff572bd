import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from moorage import errors
from moorage._lib.escapes import is_printable
from moorage.plugins import as_it_came, config_to_api, parse_config, with_rootfs
from moorage.plugins._reader import MAX_DEPTH, MAX_DOCUMENT_BYTES
from moorage.plugins.model import Config, InterfaceType
from moorage.plugins.spec import check_runnable
from support.limits import limit

pytestmark = pytest.mark.quick

briefly = settings(database=None, deadline=None, max_examples=60)
MINIMAL: dict[str, Any] = {"entrypoint": ["/p"], "interface": {"socket": "p.sock", "types": []}}


def parsed(**fields: Any) -> Config:
    return parse_config(json.dumps(MINIMAL | fields).encode()).config


def warnings(**fields: Any) -> tuple[str, ...]:
    return parse_config(json.dumps(MINIMAL | fields).encode()).warnings


def refusal(document: Any) -> str:
    with pytest.raises(errors.Invalid) as caught:
        parse_config(document if isinstance(document, bytes) else json.dumps(document).encode())
    return str(caught.value)


# --- values for hypothesis: whole documents, with odd letter case, nulls and unknown keys


SPELLINGS: list[Callable[[str], str]] = [str, str.upper, str.lower, str.title, str.swapcase]
texts = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=8).filter(is_printable)
types = st.text("abc_.-4", max_size=8).filter(lambda text: text != "bind")
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text("abcXYZ._-", min_size=1, max_size=6)
paths = st.builds("/{}".format, texts)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of the fields, some null, in any letter case, and maybe an unknown one."""

    def finish(values: dict[str, Any], spell: Callable[[str], str], unknown: list[Any]) -> dict[str, Any]:
        made = {spell(key): value for key, value in values.items()}
        return made | {f"x-unknown{index}": value for index, value in enumerate(unknown)}

    optional = {key: st.none() | value for key, value in fields.items()}
    unknown = st.lists(st.none() | numbers | texts | st.just({"a": [{"b": 1}]}), max_size=1)
    return st.builds(finish, st.fixed_dictionaries({}, optional=optional), st.sampled_from(SPELLINGS), unknown)


entry = {"name": names, "description": texts, "settable": st.lists(st.sampled_from(["value", "source", "path"]))}
documents = st.builds(
    lambda required, rest: rest | required,
    st.fixed_dictionaries(
        {
            "Entrypoint": st.lists(names, min_size=1, max_size=3),
            "interFace": st.fixed_dictionaries(
                {"socket": st.sampled_from(["p.sock", "csi/csi.sock"]), "TYPES": st.lists(texts, max_size=3)}
            ),
        }
    ),
    objects(
        description=texts,
        documentation=texts,
        workdir=paths,
        network=objects(type=st.sampled_from(["", "host", "none", "null", "bridge"])),
        mounts=st.lists(
            st.builds(
                lambda rest, destination: rest | {"destination": destination},
                objects(**entry, source=paths, type=types, options=st.lists(texts, max_size=2)),
                st.builds("/d{}".format, names),
            ),
            max_size=3,
        ),
        propagatedMount=st.builds("/p{}".format, texts),
        ipchost=st.booleans(),
        pidhost=st.booleans(),
        env=st.lists(
            st.builds(lambda rest, name: rest | {"name": name}, objects(value=texts, description=texts), names),
            max_size=3,
        ),
        args=objects(**entry, value=st.lists(texts | st.none(), max_size=3)),
        linux=objects(
            capabilities=st.lists(st.sampled_from(["CAP_SYS_ADMIN", "chown", "Cap_Kill"]), max_size=3),
            allowAllDevices=st.booleans(),
            devices=st.lists(objects(**entry, path=paths), max_size=3),
        ),
        user=objects(uid=st.integers(0, 2**32 - 2), gid=st.integers(0, 2**32 - 2)),
        rootfs=objects(type=texts, diff_ids=st.lists(texts, max_size=2)),
    ),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@briefly
@given(documents)
def test_c01_what_came_in_goes_out_unchanged_unknown_fields_included(document: dict[str, Any]) -> None:
    raw = json.dumps(document, ensure_ascii=False).encode()
    assert as_it_came(parse_config(raw).config) == raw


@briefly
@given(documents, st.lists(names, max_size=2))
def test_c01_a_package_changes_only_the_layers_in_its_document(document: dict[str, Any], diff_ids: list[str]) -> None:
    before = parse_config(json.dumps(document).encode()).config
    after = with_rootfs(before, diff_ids)
    assert after == parse_config(as_it_came(after)).config
    other_fields = {key: value for key, value in document.items() if key.casefold() != "rootfs"}
    assert json.loads(as_it_came(after)) == other_fields | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}


@briefly
@given(documents)
def test_c01_case_093_the_api_form_says_the_same_as_the_document_and_no_list_is_null(document: dict[str, Any]) -> None:
    config = parse_config(json.dumps(document).encode()).config
    again = parse_config(json.dumps(config_to_api(config)).encode())
    assert replace(again.config, document=config.document) == config
    assert not [each for each in again.warnings if "unknown key" in each]
    assert not has_null_list(config_to_api(config))


def has_null_list(value: Any, key: str = "") -> bool:
    if value is None:
        return key not in ("Value", "Source", "Path")
    if isinstance(value, dict):
        return any(has_null_list(item, name) for name, item in value.items())
    return isinstance(value, list) and any(has_null_list(item) for item in value)


def test_case_093_all_lists_null_is_the_same_as_no_lists() -> None:
    nulls = {"env": None, "mounts": None, "args": {"value": None, "settable": None}, "linux": {"capabilities": None}}
    assert replace(parsed(**nulls), document=parsed().document) == parsed()
    assert config_to_api(parsed(**nulls))["Args"] == {"Name": "", "Description": "", "Settable": [], "Value": []}
    assert parsed(env=[None, {"name": "A"}]).env == parsed(env=[{"name": "A"}]).env


@briefly
@given(anything | st.dictionaries(st.sampled_from(["env", "linux", "interface", "ENTRYPOINT", "user"]), anything))
@example({"entrypoint": ["/p"], "interface": {"socket": "p\0"}})
def test_c01_any_json_is_a_config_or_invalid(document: Any) -> None:
    try:
        parse_config(json.dumps(document).encode())
    except errors.Invalid:
        pass


@briefly
@given(st.binary(max_size=200) | st.text('{}[]":,\\u0d8eE+-.019nultrfas ', max_size=60).map(str.encode))
def test_c01_any_bytes_are_a_config_or_invalid(raw: bytes) -> None:
    try:
        parse_config(raw)
    except errors.Invalid:
        pass


HOSTILE = {
    "nothing": b"",
    "not utf-8": b'{"entrypoint":["\xff"]}',
    "byte order mark": b'\xef\xbb\xbf{"entrypoint":["/p"]}',
    "utf-16": json.dumps(MINIMAL).encode("utf-16"),
    "trailing data": json.dumps(MINIMAL).encode() + b"{}",
    "deep lists": b"[" * 500_000,
    "deep objects": b'{"a":' * 150_000,
    "balanced but deep": b"[" * 1000 + b"]" * 1000,
    "open text": b'{"' + b'\\"' * 500_000,
    "many open texts": b'"' * 999_999,
    "nan": b'{"entrypoint":NaN}',
    "infinity": b'{"x":-Infinity}',
    "huge number": b'{"user":{"uid":' + b"9" * 100_000 + b"}}",
    "huge exponent": b'{"user":{"uid":1e999999999999999999999}}',
    "half a pair": b'{"entrypoint":["\\ud800"]}',
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "too long": b" " * MAX_DOCUMENT_BYTES + json.dumps(MINIMAL).encode(),
    "many unknown keys": json.dumps({f"k{index:05}": 1 for index in range(60_000)} | {"user": 1}).encode(),
    "one long key": json.dumps({"k" * 900_000: 1, "user": 1}).encode(),
    "many wrong values": json.dumps({"env": [{"name": 1}] * 60_000}).encode(),
    "many wrong entries": json.dumps({"env": [1] * 200_000}).encode(),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_c01_hostile_documents_are_refused_soon_and_briefly(raw: bytes) -> None:
    used = time.process_time()
    assert len(refusal(raw)) < 6000
    assert time.process_time() - used < limit(10)  # a square of the length would take minutes


def test_c01_hostile_parts_that_are_not_read_do_no_harm() -> None:
    nested = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    raw = f'{{"x":{nested},"n":{"8" * 5000},"f":1e999,{json.dumps(MINIMAL)[1:]}'.encode()
    config = parse_config(raw).config
    assert as_it_came(config) == raw
    assert f'"n":{"8" * 5000}'.encode() in as_it_came(with_rootfs(config, []))


def test_c01_brackets_in_a_text_are_no_depth() -> None:
    assert parsed(description='[{"' * 200).description == '[{"' * 200


def test_c01_every_field_is_read() -> None:
    entry = {"name": "n", "description": "d", "settable": ["value"]}
    config = parsed(
        description="a plugin",
        documentation="https://example.invalid",
        dockerVersion="20.10",
        workdir="/w",
        network={"type": "host"},
        interface={"types": ["docker.volumedriver/1.0"], "socket": "p.sock", "protocolScheme": "moby.plugins.http/v1"},
        mounts=[
            {"name": "m", "description": "d", "settable": ["source"], "source": "/s", "destination": "/d"}
            | {"type": "bind", "options": ["rbind", "ro"]}
        ],
        propagatedMount="/v",
        ipchost=True,
        pidhost=True,
        env=[entry | {"value": "1"}],
        args=entry | {"value": ["x", "y"]},
        linux={
            "capabilities": ["CAP_SYS_ADMIN"],
            "allowAllDevices": True,
            "devices": [{"name": "f", "description": "d", "settable": ["path"], "path": "/dev/fuse"}],
        },
        user={"uid": 1000, "gid": 100},
        rootfs={"type": "layers", "diff_ids": ["sha256:1"]},
    )
    assert config_to_api(config) == {
        "Args": {"Name": "n", "Description": "d", "Settable": ["value"], "Value": ["x", "y"]},
        "Description": "a plugin",
        "DockerVersion": "20.10",
        "Documentation": "https://example.invalid",
        "Entrypoint": ["/p"],
        "Env": [{"Name": "n", "Description": "d", "Settable": ["value"], "Value": "1"}],
        "Interface": {
            "Socket": "p.sock",
            "Types": ["docker.volumedriver/1.0"],
            "ProtocolScheme": "moby.plugins.http/v1",
        },
        "IpcHost": True,
        "Linux": {
            "AllowAllDevices": True,
            "Capabilities": ["CAP_SYS_ADMIN"],
            "Devices": [{"Name": "f", "Description": "d", "Settable": ["path"], "Path": "/dev/fuse"}],
        },
        "Mounts": [
            {"Name": "m", "Description": "d", "Settable": ["source"], "Source": "/s", "Destination": "/d"}
            | {"Type": "bind", "Options": ["rbind", "ro"]}
        ],
        "Network": {"Type": "host"},
        "PidHost": True,
        "PropagatedMount": "/v",
        "User": {"UID": 1000, "GID": 100},
        "WorkDir": "/w",
        "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
    }


def test_c01_the_api_form_leaves_out_what_docker_leaves_out() -> None:
    made = config_to_api(parsed())
    assert made["User"] == {}
    assert made["Interface"] == {"Socket": "p.sock", "Types": []}
    assert not {"DockerVersion", "rootfs"} & made.keys()


WRONG = [
    ({"linux": {"devices": [{"path": "/dev/a"}, {"path": 3}]}}, "linux.devices[1].path: must be a text, not a number"),
    ({"Linux": {"DEVICES": [None, {"Path": {}}]}}, "linux.devices[1].path: must be a text, not an object"),
    ({"linux": {"devices": [{"path": "fuse"}]}}, "linux.devices[0].path: must be an absolute path, not fuse"),
    ({"linux": {"capabilities": "CAP_SYS_ADMIN"}}, "linux.capabilities: must be a list, not a text"),
    ({"linux": {"capabilities": ["chown", "CAP_SYS_ADMN"]}}, "linux.capabilities[1]: CAP_SYS_ADMN: Linux has none of"),
    ({"linux": {"capabilities": [True]}}, "linux.capabilities[0]: must be a text, not true"),
    ({"linux": {"allowAllDevices": "true"}}, "linux.allowAllDevices: must be true or false, not a text"),
    ({"linux": []}, "linux: must be an object, not a list"),
    ({"entrypoint": "/p"}, "entrypoint: must be a list, not a text"),
    ({"entrypoint": ["", "x"]}, "entrypoint[0]: must not be empty"),
    ({"entrypoint": ["/p", "\0"]}, "entrypoint[1]: must not have a NUL character"),
    ({"interface": {"socket": "../x"}}, "interface.socket: must be the name of a socket below /run/docker/plugins"),
    ({"interface": {"socket": "/run/p.sock"}}, "interface.socket: must be the name of a socket below"),
    ({"interface": {"socket": "a/"}}, "interface.socket: must be the name of a socket below"),
    ({"interface": {"socket": "s", "types": [{}]}}, "interface.types[0]: must be a text, not an object"),
    ({"env": ["A=1"]}, "env[0]: must be an object, not a text"),
    ({"env": [{"name": "A=B"}]}, "env[0].name: must be the name of an environment variable"),
    ({"env": [{}]}, "env[0].name: must be the name of an environment variable"),
    ({"env": {"name": "A"}}, "env: must be a list, not an object"),
    ({"args": ["x"]}, "args: must be an object, not a list"),
    ({"args": {"value": "x y"}}, "args.value: must be a list, not a text"),
    ({"user": {"uid": "1000"}}, "user.uid: must be a number, not a text"),
    ({"user": {"uid": -1}}, "user.uid: must be a whole number from 0 to"),
    ({"user": {"gid": 2**32}}, "user.gid: must be a whole number from 0 to"),
    ({"user": {"gid": 1.5}}, "user.gid: must be a whole number from 0 to"),
    ({"user": {"gid": True}}, "user.gid: must be a number, not true"),
    ({"ipchost": 1}, "ipchost: must be true or false, not a number"),
    ({"network": "host"}, "network: must be an object, not a text"),
]


LACKING = [
    ({"entrypoint": []}, "entrypoint: is missing"),
    ({"entrypoint": None}, "entrypoint: is missing"),
    ({"interface": None}, "interface.socket: is missing or empty"),
    ({"interface": {"socket": ""}}, "interface.socket: is missing or empty"),
    ({"mounts": [{"source": "/s"}]}, "mounts[0].destination: is missing or empty"),
    ({"mounts": [{"source": "/s", "destination": "/d"}, {"destination": ""}]}, "mounts[1].destination: is missing"),
]


@pytest.mark.parametrize(("fields", "text"), LACKING)
def test_case_243_what_a_start_needs_may_be_missing_with_a_warning(fields: dict[str, Any], text: str) -> None:
    parsed = parse_config(json.dumps(MINIMAL | fields).encode())
    assert [each for each in parsed.warnings if each.startswith(text) and each.endswith("the plugin cannot be enabled")]
    with pytest.raises(errors.Invalid, match=re.escape(text)):
        check_runnable(parsed.config)


@pytest.mark.parametrize(("fields", "text"), WRONG, ids=[text.partition(":")[0] for _, text in WRONG])
def test_c01_a_wrong_value_is_named_with_its_path(fields: dict[str, Any], text: str) -> None:
    assert text in refusal(MINIMAL | fields)


def test_c01_one_reading_shows_all_errors() -> None:
    text = refusal({"entrypoint": [1], "interface": {"socket": 2}, "ipchost": 3})
    assert all(path in text for path in ("entrypoint[0]", "interface.socket", "ipchost"))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"propogatedMount": "/x"}, "propogatedMount: unknown key, ignored; did you mean propagatedMount?"),
        ({"mount": []}, "mount: unknown key, ignored; did you mean mounts?"),
        ({"ipc_host": True}, "ipc_host: unknown key, ignored; did you mean ipchost?"),
        ({"linux": {"capabilites": []}}, "linux.capabilites: unknown key, ignored; did you mean capabilities?"),
        ({"env": [{"name": "A", "vlaue": "1"}]}, "env[0].vlaue: unknown key, ignored; did you mean value?"),
        ({"zzz": 1}, "zzz: unknown key, ignored"),
        ({"a b": 1}, '"a b": unknown key, ignored'),
        ({"ENTRYPOINT": ["/q"]}, "entrypoint: given more than once, the last one counts"),
        ({"mounts": [{"destination": "d"}]}, "mounts[0].destination: is not an absolute path; taken as /d"),
        ({"workdir": "w"}, "workdir: is not an absolute path; taken as /w"),
        ({"env": [{"name": "A", "settable": ["name"]}]}, "env[0].settable: only value can be set, not name"),
        ({"args": {"settable": ["value"]}}, "args.name: is missing, so that it cannot be set"),
        ({"network": {"type": "bridge"}}, "network.type: bridge networks are not set up"),
    ],
)
def test_c01_what_is_odd_is_warned_of(fields: dict[str, Any], text: str) -> None:
    found = warnings(**fields)
    assert len(found) == 1
    assert found[0].startswith(text)


def test_c01_a_good_config_has_no_warnings() -> None:
    assert warnings(network={"type": "host"}, mounts=[{"destination": "/d", "source": "/s"}]) == ()


def test_c01_of_equal_keys_the_last_with_a_value_counts() -> None:
    raw = b'{"entrypoint":["/a"],"Entrypoint":["/b"],"entrypoint":null,"interface":{"socket":"a","socket":"b"}}'
    result = parse_config(raw)
    assert (result.config.entrypoint, result.config.interface.socket) == (("/b",), "b")
    assert [each for each in result.warnings if each.startswith("interface.socket: given more than once")]


def test_case_070_any_letter_case_a_warned_typing_error_and_a_wrong_type() -> None:
    document: dict[str, Any] = {
        "Entrypoint": ["/p"],
        "PROPAGATEDMOUNT": "/m",
        "propogatedMount": "/x",
        "ipchost": True,
        "interface": {"types": "docker.volumedriver/1.0", "socket": "p.sock"},
    }
    text = refusal(document)
    assert "interface.types: must be a list, not a text" in text
    assert "propogatedMount: unknown key, ignored; did you mean propagatedMount?" in text
    document["interface"]["types"] = ["docker.volumedriver/1.0"]
    config = parse_config(json.dumps(document).encode()).config
    assert (config.entrypoint, config.propagated_mount, config.ipc_host) == (("/p",), "/m", True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("docker.volumedriver/1.0", ("docker", "volumedriver", "1.0")),
        ("docker.volumedriver/2.0", ("docker", "volumedriver", "2.0")),
        ("docker.dummy", ("docker", "dummy", "")),
        ("volumedriver/1.0", ("", "volumedriver", "1.0")),
        ("a.b.c/1/2", ("a.b", "c", "1/2")),
        ("Docker.LogDriver/1.0", ("Docker", "LogDriver", "1.0")),
        ("", ("", "", "")),
        ("/", ("", "", "")),
        (".", ("", "", "")),
    ],
)
def test_c02_interface_types_have_three_parts_any_of_which_may_be_missing(
    text: str, parts: tuple[str, str, str]
) -> None:
    kind = InterfaceType(text)
    assert (kind.prefix, kind.capability, kind.version) == parts


@briefly
@given(st.lists(texts, max_size=4))
def test_c02_interface_types_go_out_unchanged(types: list[str]) -> None:
    made = config_to_api(parsed(interface={"socket": "p.sock", "types": types}))
    assert isinstance(made["Interface"], dict)
    assert made["Interface"]["Types"] == types


@pytest.mark.parametrize("kind", ["foo", "HOST", "Host", "container:x"])
def test_case_079_other_network_types_are_refused_by_name(kind: str) -> None:
    assert f"network.type: must be host, none, null or bridge, not {kind}" in refusal(
        MINIMAL | {"network": {"type": kind}}
    )


def test_case_073_the_protocol_is_preserved_and_says_whether_http_makes_sense() -> None:
    def is_http(scheme: str | None) -> bool:
        return parsed(interface={"socket": "p.sock", "protocolScheme": scheme}).interface.is_http

    assert [is_http(each) for each in (None, "", "moby.plugins.http/v1", "csi/v1", "HTTP")] == [
        True,
        True,
        True,
        False,
        False,
    ]
