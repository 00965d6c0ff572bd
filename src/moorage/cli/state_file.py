"""The desired state of the plugins of a host, from the YAML file of ``moorage apply``; errors name their line.

A value is taken as it is written: ``DEBUG: 1`` and ``DEBUG: "1"`` are the same setting.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct, field

from moorage import errors
from moorage.api.schema.plugins import HealthRequest
from moorage.cli.health.options import HEALTH_ACTIONS, make_checks, parse_command
from moorage.cli.parameters import parse_duration, parse_restart, parse_size, parse_time_limit, parse_ulimit
from moorage.plugins import check_labels, local_name, parse_reference

__all__ = ("POLICY_KEYS", "DesiredPlugin", "DesiredState", "Grant", "read_desired_state")

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LIMIT = 1 << 20  # bytes
_RESTARTS = ("always", "on-failure", "never", "no", "unless-stopped")
_NULL = "tag:yaml.org,2002:null"
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

Grant = tuple[str, tuple[str, ...]]
"""A privilege that is granted: its name, and its values."""


class DesiredPlugin(Struct, frozen=True):
    """The desired state of one plugin."""

    position: str
    """``plugins.yaml:3: plugins[0]``."""
    name: str
    """Its local name."""
    reference: str
    """In full, with a tag or a digest."""
    settings: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Path] = field(default_factory=dict)
    """Settings whose values are in files, and are never shown."""
    enabled: bool = True
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a ``PolicyRequest`` that are given: ``restarts``, ``memory_bytes``, ..."""
    granted: tuple[Grant, ...] | None = ()
    """Exactly the privileges that it may request; None for any."""
    publish: Mapping[str, Any] | bool | None = None
    """Fields of a ``PublishRequest``; False for one to be unpublished, None where the file does not say."""
    labels: Mapping[str, str] | None = None
    """All its labels; None where the file does not say."""


class DesiredState(Struct, frozen=True):
    """The desired state of a host."""

    plugins: tuple[DesiredPlugin, ...]
    removes_others: bool = False
    """Plugins that are not in the file are removed."""
    name: str = ""
    """Identity that the file gives itself; empty for that of its path."""


def read_desired_state(data: bytes, name: str, folder: Path) -> DesiredState:
    """The desired state in a file; paths of secrets are relative to ``folder``.

    Raises:
        errors.Invalid: names the line and the path of what is wrong (``plugins.yaml:7: plugins[0].policy.max: ...``)
    """
    if len(data) > _LIMIT:
        raise errors.Invalid(f"cannot read {name}: it is larger than {_LIMIT} bytes")
    try:
        node = yaml.compose(data.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise errors.Invalid(f"cannot read {name}: it is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise errors.Invalid(f"{name}:{line}: this is no YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise errors.Invalid(f"cannot read {name}: it is no YAML: {error}") from error
    if node is None:
        raise errors.Invalid(f"cannot read {name}: it is empty; it is to have a list of plugins")
    top = _Node(node, name, "").fields("name", "plugins", "others")
    if "plugins" not in top:
        raise errors.Invalid(f"{name}:1: there is no list of plugins")
    plugins = tuple(_plugin(each, folder) for each in top["plugins"].items())
    _check_names(plugins)
    others = top["others"].choice("keep", "remove") if "others" in top else "keep"
    own = top["name"].checked(_file_name) if "name" in top else ""
    return DesiredState(plugins, others == "remove", own)


def _file_name(text: str) -> str:
    if not _FILE_NAME.fullmatch(text):
        raise errors.Invalid(f"it must be letters, digits, dots, dashes and underscores, not {text!r}")
    return text


class _Node(Struct, frozen=True):
    """A node of the file, with its path."""

    node: yaml.Node
    file: str
    path: str

    @property
    def position(self) -> str:
        return f"{self.file}:{self.node.start_mark.line + 1}: {self.path or 'the file'}"

    def wrong(self, cause: str) -> errors.Invalid:
        """What is wrong with it."""
        return errors.Invalid(f"{self.position}: {cause}")

    def fields(self, *known: str) -> "dict[str, _Node]":
        """The fields of a mapping; without ``known`` they may be any. Raises: Invalid."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.wrong("it must be a mapping (name: value)")
        found: dict[str, _Node] = {}
        for key, value in self.node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            node = _Node(value, self.file, f"{self.path}.{name}".lstrip("."))
            if not name or (known and name not in known):
                known_names = ", ".join(known)
                raise _Node(key, self.file, node.path).wrong(f"there is no such field; known are {known_names}")
            if name in found:
                raise _Node(key, self.file, node.path).wrong("it is given twice")
            found[name] = node
        return found

    def items(self) -> "Iterator[_Node]":
        """The items of a list. Raises: Invalid."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.wrong("it must be a list (- ...)")
        for at, each in enumerate(self.node.value):
            yield _Node(each, self.file, f"{self.path}[{at}]")

    def text(self) -> str:
        """A value as it is written. Raises: Invalid."""
        if not isinstance(self.node, yaml.ScalarNode) or self.node.tag == _NULL:
            raise self.wrong("it must be a text")
        return str(self.node.value)

    def choice(self, *known: str) -> str:
        """One of these words. Raises: Invalid."""
        if (text := self.text()) not in known:
            raise self.wrong(f"it must be one of {', '.join(known)}, not {text!r}")
        return text

    def truth(self) -> bool:
        """Yes or no. Raises: Invalid."""
        found = _TRUTH.get(self.text().lower())
        if found is None:
            raise self.wrong(f"it must be true or false, not {self.text()!r}")
        return found

    def number(self, kind: Callable[[str], float]) -> float:
        """A number, 0 or more. Raises: Invalid."""
        try:
            found = kind(self.text())
        except ValueError:
            found = -1
        if not 0 <= found < 1e9:
            raise self.wrong(f"it must be a number, 0 or more, not {self.text()!r}")
        return found

    def checked(self, check: Callable[[str], str]) -> str:
        """A text that passes. Raises: Invalid with the line."""
        try:
            return check(self.text())
        except errors.Invalid as error:
            raise self.wrong(str(error)) from error


def _plugin(node: _Node, folder: Path) -> DesiredPlugin:
    fields = node.fields(
        *("name", "reference", "settings", "secrets", "enabled", "policy", "health", "privileges", "publish", "labels")
    )
    if "reference" not in fields:
        raise node.wrong("there is no reference, which says where the plugin comes from")
    reference = fields["reference"].checked(lambda text: str(parse_reference(text).with_default_tag()))
    named = fields["name"].checked(local_name) if "name" in fields else ""
    settings = {key: each.text() for key, each in _fields(fields, "settings").items()}
    secrets = {key: folder / each.text() for key, each in _fields(fields, "secrets").items()}
    if both := sorted(set(settings) & set(secrets)):
        raise node.wrong(f"{both[0]} is both a setting and a secret")
    return DesiredPlugin(
        position=node.position,
        name=named or parse_reference(reference).local_name,
        reference=reference,
        settings=settings,
        secrets=secrets,
        enabled=fields["enabled"].truth() if "enabled" in fields else True,
        policy={
            **(_policy(fields["policy"]) if "policy" in fields else {}),
            **({"health": _health(fields["health"])} if "health" in fields else {}),
        },
        granted=_grants(fields["privileges"]) if "privileges" in fields else (),
        publish=_publish(fields["publish"]) if "publish" in fields else None,
        labels=_labels(fields["labels"]) if "labels" in fields else None,
    )


def _labels(node: _Node) -> dict[str, str]:
    labels = {key: each.text() for key, each in node.fields().items()}
    try:
        check_labels(labels)
    except errors.Invalid as error:
        raise node.wrong(str(error)) from error
    return labels


def _fields(fields: Mapping[str, _Node], key: str) -> dict[str, _Node]:
    return fields[key].fields() if key in fields else {}


def _policy(node: _Node) -> dict[str, Any]:
    fields = node.fields(*POLICY_KEYS)
    return {POLICY_KEYS[key].name: POLICY_KEYS[key].read(each) for key, each in fields.items()}


def _health(node: _Node) -> HealthRequest:
    """False or none for a plugin without health checks, or their mapping."""
    if isinstance(node.node, yaml.ScalarNode):
        node.choice("false", "none")
        return HealthRequest(checks=[])
    fields = node.fields(*_HEALTH_KEYS)
    found = {_HEALTH_KEYS[key].name: _HEALTH_KEYS[key].read(each) for key, each in fields.items()}
    checks = make_checks(found.pop("call", None), found.pop("command", None), connects=found.pop("connect", False))
    return HealthRequest(checks=checks, **found)


def _command(node: _Node) -> list[str]:
    return _texts(node) if isinstance(node.node, yaml.SequenceNode) else list(_parsed(parse_command, node))


def _publish(node: _Node) -> Mapping[str, Any] | bool:
    """True or false, a name, a list of names, or a mapping of names and options."""
    if isinstance(node.node, yaml.ScalarNode):
        text = node.text()
        is_published = _TRUTH.get(text.lower())
        return {"names": [text]} if is_published is None else ({"names": []} if is_published else False)
    if isinstance(node.node, yaml.SequenceNode):
        return {"names": _texts(node)}
    fields = node.fields(*_PUBLISH_KEYS)
    found = {_PUBLISH_KEYS[key].name: _PUBLISH_KEYS[key].read(each) for key, each in fields.items()}
    return {"names": [], **found}


def _texts(node: _Node) -> list[str]:
    return [each.text() for each in node.items()]


def _time_limits(node: _Node) -> dict[str, float]:
    limits = {}
    for call, each in node.fields().items():
        try:
            limits[call] = parse_time_limit(f"{call}={each.text()}")[1]
        except ValueError as error:
            raise each.wrong(str(error)) from error
    return limits


class _PolicyKey(Struct, frozen=True):
    """A line of a policy, or of a publication: its name in the API, and how its value is read."""

    name: str
    read: Callable[[_Node], Any]


def _ulimits(node: _Node) -> dict[str, tuple[int, int]]:
    limits = {}
    for name, each in node.fields().items():
        try:
            limits[name] = parse_ulimit(f"{name}={each.text()}")[1]
        except ValueError as error:
            raise each.wrong(str(error)) from error
    return limits


def _parsed(parse: Callable[[str], Any], node: _Node) -> Any:
    try:
        return parse(node.text())
    except ValueError as error:
        raise node.wrong(str(error)) from error


POLICY_KEYS: Mapping[str, _PolicyKey] = {
    "restart": _PolicyKey("restarts", lambda node: parse_restart(node.choice(*_RESTARTS))[0]),
    "max": _PolicyKey("most", lambda node: int(node.number(int))),
    "stop-timeout": _PolicyKey("stop_timeout", lambda node: node.number(float)),
    "log": _PolicyKey("log", lambda node: node.choice("file", "journald", "syslog")),
    "standby": _PolicyKey("standby", _Node.truth),
    "seccomp": _PolicyKey("seccomp", lambda node: node.choice("default", "unconfined")),
    "allow-new-privileges": _PolicyKey("new_privileges", _Node.truth),
    "capabilities": _PolicyKey("capabilities", lambda node: node.choice("docker", "minimal")),
    "apparmor": _PolicyKey("apparmor", _Node.text),
    "selinux-label": _PolicyKey("selinux_label", _Node.text),
    "read-only": _PolicyKey("read_only", _Node.truth),
    "userns": _PolicyKey("userns", lambda node: node.choice("host", "auto")),
    "init": _PolicyKey("init", _Node.truth),
    "memory": _PolicyKey("memory_bytes", lambda node: _parsed(parse_size, node)),
    "cpus": _PolicyKey("cpus", lambda node: node.number(float)),
    "pids": _PolicyKey("pids", lambda node: int(node.number(int))),
    "ulimits": _PolicyKey("rlimits", _ulimits),
    "oom-score-adj": _PolicyKey("oom_score_adj", lambda node: _parsed(int, node)),
    "nice": _PolicyKey("nice", lambda node: _parsed(int, node)),
}
"""Keys of a policy."""


_HEALTH_KEYS: Mapping[str, _PolicyKey] = {
    "call": _PolicyKey("call", _Node.text),
    "cmd": _PolicyKey("command", _command),
    "connect": _PolicyKey("connect", _Node.truth),
    "interval": _PolicyKey("interval", lambda node: _parsed(parse_duration, node)),
    "timeout": _PolicyKey("timeout", lambda node: _parsed(parse_duration, node)),
    "start-period": _PolicyKey("start_period", lambda node: _parsed(parse_duration, node)),
    "retries": _PolicyKey("failures", lambda node: int(node.number(int))),
    "on-failure": _PolicyKey("on_failure", lambda node: node.choice(*HEALTH_ACTIONS)),
}
"""Keys of health checks."""


_PUBLISH_KEYS: Mapping[str, _PolicyKey] = {
    "names": _PolicyKey("names", _texts),
    "group": _PolicyKey("group", _Node.text),
    "while-disabled": _PolicyKey("while_disabled", lambda node: node.choice("auto", "unlink", "answer")),
    "while-unhealthy": _PolicyKey("while_unhealthy", lambda node: node.choice("forward", "fail")),
    "replay": _PolicyKey("replay", _Node.truth),
    "at-once": _PolicyKey("at_once", lambda node: int(node.number(int))),
    "time-limits": _PolicyKey("time_limits", _time_limits),
    "podman": _PolicyKey("podman", _Node.truth),
}
"""Keys of a plugin that is published."""


def _grants(node: _Node) -> tuple[Grant, ...] | None:
    if isinstance(node.node, yaml.ScalarNode):
        node.choice("all")
        return None
    found: list[Grant] = []
    for each in node.items():
        fields = each.fields("name", "value")
        if set(fields) != {"name", "value"}:
            raise each.wrong("a privilege has a name, and a list of values")
        found.append((fields["name"].text(), tuple(item.text() for item in fields["value"].items())))
    return tuple(found)


def _check_names(plugins: tuple[DesiredPlugin, ...]) -> None:
    seen: dict[str, str] = {}
    for each in plugins:
        if each.name in seen:
            raise errors.Invalid(f"{each.position}: plugin {each.name} is in the file already, at {seen[each.name]}")
        seen[each.name] = each.position
