"""Targets: documents that authors of plugins, users, other programs or an earlier version wrote."""

import json
from functools import partial
from pathlib import Path
from random import Random

import yaml

from fuzz.harness import CrashError, Target
from fuzz.mutation import mutate_bytes, mutate_json, mutate_lines
from moorage import errors
from moorage.cli.state_file import read_desired_state
from moorage.engine.store import _decode
from moorage.engine.values import EngineIdentity, PluginRecord
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    HostPaths,
    apply_settings,
    as_it_came,
    build_spec,
    check_granted,
    check_policy,
    compute_privileges,
    config_to_api,
    effective_settings,
    local_name,
    needs,
    parse_config,
    parse_policy,
    parse_privileges,
    parse_reference,
    privileges_to_api,
    rebase,
    settings_to_api,
)

CONFIG = {
    "description": "a volume driver",
    "documentation": "https://example.org",
    "entrypoint": ["/bin/driver", "-v"],
    "interface": {"types": ["docker.volumedriver/1.0"], "socket": "driver.sock", "protocolScheme": "moby.plugins.http/v1"},
    "network": {"type": "host"},
    "ipchost": True,
    "pidhost": True,
    "propagatedMount": "/data/volumes",
    "user": {"uid": 1000, "gid": 1000},
    "workdir": "/srv",
    "args": {"name": "args", "settable": ["value"], "value": ["a", "b c"]},
    "env": [{"name": "DEBUG", "settable": ["value"], "value": "0"}, {"name": "TOKEN", "settable": ["value"], "value": None}],
    "mounts": [
        {"name": "state", "settable": ["source"], "source": "/var/lib/x", "destination": "/state", "type": "bind", "options": ["rbind", "rw"]},
        {"name": "tmp", "source": "tmpfs", "destination": "/tmp", "type": "tmpfs", "options": ["size=1m"]},
    ],
    "linux": {
        "capabilities": ["CAP_SYS_ADMIN"],
        "allowAllDevices": False,
        "devices": [{"name": "fuse", "settable": ["path"], "path": "/dev/fuse"}],
    },
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
}  # fmt: skip
RAW_CONFIG = json.dumps(CONFIG).encode()
CONFIG_KEYS = (
    "args", "description", "entrypoint", "env", "interface", "ipchost", "IpcHost", "linux", "mounts", "network", "pidhost",
    "propagatedMount", "rootfs", "user", "workdir", "name", "settable", "value", "source", "destination", "type", "options",
    "capabilities", "allowAllDevices", "devices", "path", "types", "socket", "protocolScheme", "uid", "gid", "diff_ids",
)  # fmt: skip

_PATHS = HostPaths(
    "/root", "/run/moorage/p/0/s", "/moorage/0", propagated_mount="/var/lib/moorage/plugins/0/propagated-mount"
)


# ------------------------------------------------------------------------------------------------ config.json


def read_config(data: bytes) -> None:
    """A config, and all that is made of one before its plugin starts."""
    parsed = parse_config(data)
    _use(parsed.config)
    for warning in parsed.warnings:
        warning.encode()


def _use(config: Config) -> None:
    if parse_config(as_it_came(config)).config != config:
        raise CrashError("a config that is written and read again is another one")
    json.dumps(config_to_api(config), ensure_ascii=False).encode()
    json.dumps(privileges_to_api(compute_privileges(config)), ensure_ascii=False).encode()
    settings = effective_settings(config, NO_OVERRIDES)
    json.dumps(settings_to_api(settings), ensure_ascii=False).encode()
    try:
        needs(settings)
        spec = build_spec(config, settings, _PATHS)
    except errors.Invalid:
        return
    json.dumps(spec, ensure_ascii=False).encode()


# -------------------------------------------------------------------------------- what a user and a host decide


def read_settings(data: bytes) -> None:
    """Lines of ``NAME=VALUE``; from an empty one on they are secrets."""
    config = parse_config(RAW_CONFIG).config
    plain, _, secret = data.decode("utf-8", "surrogateescape").partition("\n\n")
    made = apply_settings(config, NO_OVERRIDES, plain.split("\n"), secrets=secret.split("\n") if secret else ())
    settings = effective_settings(config, made)
    shown = json.dumps(settings_to_api(settings), ensure_ascii=False)
    shown.encode()
    for line in secret.split("\n"):
        value = line.partition("=")[2]
        if len(value) > 20 and value in shown:
            raise CrashError("a secret is shown")
    if rebase(config, made).overrides != made:
        raise CrashError("settings do not apply to the config that they were made for")
    try:
        build_spec(config, settings, _PATHS)
    except errors.Invalid:
        return


def read_policy(data: bytes) -> None:
    """A host's allow-list, and what it says of a config."""
    policy = parse_policy(data)
    check_policy(policy, parse_config(RAW_CONFIG).config)


def read_privileges(data: bytes) -> None:
    """Grants, compared with what a config asks for."""
    granted = parse_privileges(data)
    json.dumps(privileges_to_api(granted), ensure_ascii=False).encode()
    check_granted(compute_privileges(parse_config(RAW_CONFIG).config), granted)


def read_reference(data: bytes) -> None:
    """A reference, and the names that are made of it."""
    text = data.decode("utf-8", "surrogateescape")
    reference = parse_reference(text)
    for shown in (str(reference), reference.familiar, str(reference.with_default_tag())):
        if parse_reference(shown).name != reference.name:
            raise CrashError(f"{shown!r} is another repository than {text!r}")
    if not all(part not in ("", ".", "..") for part in reference.path.split("/")):
        raise CrashError(f"{text!r} has a path with a part that is none")
    local_name(text)


# ---------------------------------------------------------------------------------------------- apply, records


def read_plugins_file(data: bytes) -> None:
    """A file of ``moorage apply``."""
    for each in read_desired_state(data, "plugins.yaml", Path("/etc")).plugins:
        repr(each).encode(errors="backslashreplace")


def read_record(data: bytes) -> None:
    """A stored plugin; an engine that reads it starts from it."""
    record = _decode(data, PluginRecord, Path("plugin.json"))
    try:
        config = parse_config(record.config.encode()).config
    except errors.Invalid:
        return
    effective_settings(config, record.overrides)


def read_choice(data: bytes) -> None:
    """What was settled at the first start."""
    _decode(data, EngineIdentity, Path("engine.json"))


RECORD = {
    "id": "a" * 64, "name": "a:latest", "reference": "docker.io/library/a:latest", "config": json.dumps(CONFIG),
    "image": "moorage/a", "digest": "sha256:" + "0" * 64, "snapshotter": "overlayfs", "snapshot": "a",
    "created_at": "2026-01-01T00:00:00Z", "enabled": True,
    "overrides": {"env": [["DEBUG", "1"]], "mounts": [["state", "/x"]], "devices": [], "args": ["x"], "args_name": "args", "secrets": ["TOKEN.value"]},
    "policy": {"restarts": "always", "most": 3, "stop_timeout": 2.5}, "run": 4, "restarts": 2, "failures": 1,
    "last_exit": {"code": 1, "signal": None, "oom": False, "at": "2026-01-01T00:00:00Z", "error": ""},
    "holders": [], "warnings": [], "tags": ["b:latest"], "removing": False, "schema": 1,
}  # fmt: skip

YAML = b"""others: remove
plugins:
- name: a
  reference: vieux/sshfs:latest
  settings: {DEBUG: 1, "TOKEN": yes}
  secrets:
    KEY: key.txt
  enabled: on
  policy: {restart: always, max: 3, stop-timeout: 2.5}
  privileges:
  - {name: network, value: [host]}
- reference: localhost:5000/b@sha256:0000000000000000000000000000000000000000000000000000000000000000
  privileges: all
"""
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (at, at, b",".join([b"*%c" % (at - 1)] * 9)) for at in range(ord("b"), ord("k"))
)
_YAML_WORDS = (
    b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system [id]", b"!!binary", b"!!int ", b"- ", b": ", b"? ", b"{", b"[",
    b"]", b"}", b"%YAML 9.9\n", b"--- ", b"...\n", b"|\n", b">-\n", b"\t", b"'", b'"', b"1e999", b"0x", b"1_0", b"2026-13-01",
    b"190:20:30", b"[" * 5000, b"{a: " * 3000, b"&a [*a]", b"nan", b".inf", b"9" * 5000, b"\\u0000", b"\xc2\x85", b"\xef\xbb\xbf",
)  # fmt: skip


def _mutate_yaml(data: bytes, random: Random) -> bytes:
    return (mutate_lines if random.random() < 0.4 else partial(mutate_bytes, words=_YAML_WORDS))(data, random)


TARGETS = (
    Target(
        "config", "config.json, and the container made of it", read_config, (RAW_CONFIG, b'{"entrypoint":["/p"],"interface":{"socket":"p"}}'),
        partial(mutate_json, keys=CONFIG_KEYS),
    ),
    Target(
        "settings", "assignments of `set`", read_settings,
        (b"DEBUG=1\nstate.source=/x\nargs=a 'b c'\nfuse.path=/dev/fuse\n\nTOKEN=secretsecretsecretsecret", b"DEBUG.value=\xc3\xa9"),
        mutate_lines,
        dictionary=(b"=", b".", b"DEBUG", b"state.source=", b"args.value=", b"'", b'"', b"\\"),
    ),
    Target(
        "policy", "the file of --grants", read_policy,
        (b'{"network":["host"],"mounts":["/var/lib/","*"],"devices":["/dev/fuse"],"capabilities":["CAP_SYS_ADMIN"],"hostIpc":true,"hostPid":true}',),
        partial(mutate_json, keys=("network", "mounts", "devices", "capabilities", "hostIpc", "hostPid", "allowAllDevices")),
        kinds=(errors.Invalid, errors.Denied),
    ),
    Target(
        "privileges", "the grants in a pull", read_privileges,
        (json.dumps(privileges_to_api(compute_privileges(parse_config(RAW_CONFIG).config))).encode(), b"null"),
        partial(mutate_json, keys=("Name", "name", "Description", "Value")),
        kinds=(errors.Invalid, errors.Denied),
    ),
    Target(
        "reference", "names of plugins", read_reference,
        (b"vieux/sshfs:latest", b"localhost:5000/a/b@sha256:" + b"0" * 64, b"[::1]:5000/a", b"docker.io/a.b/c", b"index.docker.io/a"),
        dictionary=(b":", b"/", b"@", b"..", b"__", b"-", b"docker.io/", b"library/", b"sha512:", b"localhost/", b"["),
        executions=4000,
    ),
    Target(
        "apply", "plugins.yaml", read_plugins_file, (YAML, BOMB, b"plugins: []", yaml.safe_dump(RECORD).encode()), _mutate_yaml,
        executions=600,
    ),
    Target(
        "record", "plugin.json of the data directory", read_record, (json.dumps(RECORD).encode(),),
        partial(mutate_json, keys=tuple(RECORD)), kinds=(errors.Invalid, errors.Unsupported),
    ),
    Target(
        "choice", "engine.json of the data directory", read_choice,
        (b'{"engine_id":"a","containerd":"private","namespace":"plugins.moby","schema":1}',), partial(mutate_json, keys=("schema",)),
        kinds=(errors.Invalid, errors.Unsupported),
    ),
)  # fmt: skip
