"""What the client makes of answers: of its own engine, of a newer and an older one, and of another server."""

import json
from copy import deepcopy
from typing import Any

import pytest

from moorage import errors
from moorage.api.conversion import to_plugin
from moorage.api.schema.base import to_document
from moorage.api.schema.output import ExecExit, LogLine, PluginStats
from moorage.api.schema.packages import LoadedPlugin, PrivilegeReview, ProgressLine
from moorage.api.schema.plugins import PluginDetails, PluginPolicy, PluginPrivilege
from moorage.api.schema.system import DiskUsageReport, EventMessage, PruneReport, SystemInfo, SystemVersion
from moorage.client.answers import decode_answer
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginView
from moorage.plugins import NO_OVERRIDES, effective_settings, parse_config

KINDS: tuple[Any, ...] = (
    *(list[PluginDetails], PluginDetails, PluginPolicy, list[PluginPrivilege], PrivilegeReview, list[LoadedPlugin]),
    *(SystemInfo, SystemVersion, DiskUsageReport, PruneReport, PluginStats, EventMessage, LogLine, ExecExit),
)
FOREIGN = "does --host or MOORAGE_HOST name the socket of another server?"
DOCKERD_PLUGIN = {"Id": "5f54", "Name": "t/sshfs:v1", "Enabled": False, "Config": {}, "Settings": {}}
DOCKERD_VERSION = {"Platform": {"Name": "Docker Engine"}, "Version": "28.2.2", "ApiVersion": "1.50", "Os": "linux"}


def document() -> dict[str, Any]:
    config = parse_config(b'{"description": "d", "entrypoint": ["/p"], "interface": {"socket": "p.sock"}}').config
    view = PluginView("1f", "p:latest", "p:latest", True, State.READY, config, effective_settings(config, NO_OVERRIDES))
    made: dict[str, Any] = to_document(to_plugin(view))
    return made


def read(found: Any, kind: Any = PluginDetails) -> Any:
    return decode_answer(json.dumps(found).encode(), kind)


def test_an_answer_becomes_what_it_was_made_of() -> None:
    assert to_document(read(document())) == document()


@pytest.mark.parametrize(
    "path", [(), ("Config",), ("Config", "Linux"), ("Settings",), ("Moorage",), ("Moorage", "Policy")]
)
def test_fields_of_a_newer_engine_are_ignored(path: tuple[str, ...]) -> None:
    changed = document()
    inner = changed
    for key in path:
        inner = inner[key]
    inner["FromTheFuture"] = {"a": [1]}
    assert read(changed) == read(document())


@pytest.mark.parametrize("key", ["Tags", "Digest", "Ungranted", "UptimeSeconds", "Problem"])
def test_fields_that_an_older_engine_lacks_have_defaults(key: str) -> None:
    changed = document()
    del changed["Moorage"][key]
    assert read(changed).name == "p:latest"


@pytest.mark.parametrize(
    ("found", "kind"),
    [([DOCKERD_PLUGIN], list[PluginDetails]), (DOCKERD_VERSION, SystemVersion), ({"ID": "x", "Images": 3}, SystemInfo)],
)
def test_another_server_is_recognized(found: Any, kind: Any) -> None:
    with pytest.raises(errors.Unavailable, match=r"cannot understand the answer .* required field") as caught:
        read(found, kind)
    assert FOREIGN in str(caught.value)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    "raw", [b"", b"null", b"1", b'"x"', b"[[]]", b'{"Name": 1}', b"<html>", b"\xff", b"[" * 100_000]
)
def test_a_malformed_answer_is_one_clear_error(raw: bytes, kind: Any) -> None:
    with pytest.raises(errors.Unavailable, match="cannot understand the answer of the engine: ") as caught:
        decode_answer(raw, kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Name", None),
        ("Enabled", "yes"),
        ("Config", []),
        ("Settings", None),
        ("Moorage", None),
        ("Moorage", {"State": 1}),
    ],
)
def test_a_field_of_a_wrong_type_is_named(key: str, value: Any) -> None:
    with pytest.raises(errors.Unavailable, match=rf"at `\$\.{key}"):
        read({**document(), key: value})


def test_half_characters_in_the_command_of_a_process_are_accepted() -> None:
    changed = deepcopy(document())
    process = {"Pid": 1, "Parent": 0, "State": "S", "Command": "\udc80", "MemoryBytes": 1, "CpuSeconds": 0.1}
    changed["Moorage"]["Processes"] = [{**process, "Threads": 1, "StartedAt": None}]
    assert read(changed).moorage.processes[0].command == "\udc80"


def test_a_line_of_progress_has_a_result_or_an_error() -> None:
    line = read({"errorDetail": {"code": 404, "message": "m"}, "error": "m"}, ProgressLine)
    assert (line.error, line.error_detail.code, bool(line.aux)) == ("m", 404, False)
