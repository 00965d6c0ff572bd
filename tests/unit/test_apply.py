"""The file of ``moorage apply``: what it says, what is wrong with it and where, and what differs from a machine."""

from pathlib import Path

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from moorage import errors
from moorage.api.conversion import to_plugin
from moorage.api.schema.base import from_document, to_document
from moorage.api.schema.plugins import PluginDetails, PluginHealthPolicy
from moorage.cli.state_diff import PluginDiff, diff_state
from moorage.cli.state_file import DesiredState, read_desired_state
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginView, Publication
from moorage.plugins import NO_OVERRIDES, effective_settings, parse_config

CONFIG = parse_config(b'{"description": "", "entrypoint": ["/p"], "interface": {"socket": "p.sock"}}').config
SETTINGS = effective_settings(CONFIG, NO_OVERRIDES)
WHOLE = b"""
plugins:
- reference: vieux/sshfs:1.0
  name: sshfs
  settings:
    DEBUG: 1
    state.source: "/srv"
    empty: ""
  secrets:
    TOKEN: keys/token
  enabled: no
  policy: {restart: on-failure, max: 5, stop-timeout: 2.5}
  privileges:
  - name: network
    value: [host]
- reference: localhost:5000/a/b
  privileges: all
others: remove
"""


def read(text: str | bytes) -> DesiredState:
    return read_desired_state(text if isinstance(text, bytes) else text.encode(), "p.yaml", Path("/etc/moorage"))


def test_d09_a_file_says_what_is_desired() -> None:
    file = read(WHOLE)
    first, second = file.plugins
    assert (first.name, first.reference, first.position) == (
        "sshfs:latest",
        "docker.io/vieux/sshfs:1.0",
        "p.yaml:3: plugins[0]",
    )
    assert first.settings == {"DEBUG": "1", "state.source": "/srv", "empty": ""}
    assert first.secrets == {"TOKEN": Path("/etc/moorage/keys/token")}
    assert first.policy == {"restarts": "on-failure", "most": 5, "stop_timeout": 2.5}
    assert (first.enabled, first.granted) == (False, (("network", ("host",)),))
    assert (second.name, second.enabled, second.granted) == ("localhost:5000/a/b:latest", True, None)
    assert file.removes_others


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot read p.yaml: it is empty"),
        ("a: [", "p.yaml:1: this is no YAML"),
        ("- x", "p.yaml:1: the file: it must be a mapping"),
        ("plugin: []", "p.yaml:1: plugin: there is no such field; known are name, plugins, others"),
        ("others: keep", "p.yaml:1: there is no list of plugins"),
        ("plugins: x", "p.yaml:1: plugins: it must be a list"),
        ("plugins:\n- x", "p.yaml:2: plugins[0]: it must be a mapping"),
        ("plugins:\n- name: x", "p.yaml:2: plugins[0]: there is no reference"),
        ("plugins:\n- reference: UPPER", "p.yaml:2: plugins[0].reference: failed to parse reference"),
        ("plugins:\n- reference: a\n  name: b@sha256:" + "0" * 64, "p.yaml:3: plugins[0].name: cannot use digest"),
        ("plugins:\n- reference: a\n  colour: red", "p.yaml:3: plugins[0].colour: there is no such field"),
        ("plugins:\n- reference: a\n  reference: b", "p.yaml:3: plugins[0].reference: it is given twice"),
        ("plugins:\n- reference: a\n  settings:\n    A: [1]", "p.yaml:4: plugins[0].settings.A: it must be a text"),
        ("plugins:\n- reference: a\n  settings:\n    A:", "p.yaml:4: plugins[0].settings.A: it must be a text"),
        ("plugins:\n- reference: a\n  enabled: maybe", "p.yaml:3: plugins[0].enabled: it must be true or false"),
        ("plugins:\n- reference: a\n  policy: {restart: often}", "plugins[0].policy.restart: it must be one of always"),
        ("plugins:\n- reference: a\n  policy:\n    max: -1", "p.yaml:4: plugins[0].policy.max: it must be a number"),
        ("plugins:\n- reference: a\n  privileges: some", "p.yaml:3: plugins[0].privileges: it must be one of all"),
        ("plugins:\n- reference: a\n  privileges:\n  - {name: x}", "p.yaml:4: plugins[0].privileges[0]: a privilege"),
        ("plugins:\n- reference: a\n  settings: {A: 1}\n  secrets: {A: f}", "A is both a setting and a secret"),
        ("plugins:\n- reference: a\n- reference: a:latest", "p.yaml:3: plugins[1]: plugin a:latest is in the file"),
        ("plugins:\n- reference: a\n  publish: {name: x}", "plugins[0].publish.name: there is no such field"),
        ("plugins:\n- reference: a\n  publish: {while-disabled: x}", "while-disabled: it must be one of auto, unlink"),
        ("plugins:\n- reference: a\n  publish: {time-limits: {x: 1}}", "time-limits.x: 'x=1' is not CALL=SECONDS"),
        ("plugins: []\nothers: burn", "p.yaml:2: others: it must be one of keep, remove"),
        ("plugins: []\n---\nplugins: []", "p.yaml:2: this is no YAML"),
        (b"plugins: \xff", "it is not UTF-8 text"),
        (b"x" * (1 << 20 | 1), "it is larger than"),
        ("[" * 5000, "no YAML"),
    ],
)
def test_d09_what_is_wrong_is_reported_with_its_line_and_key(text: str | bytes, said: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        read(text)
    assert said in str(caught.value)


def plugin(
    name: str = "p:latest",
    *,
    enabled: bool = True,
    tags: tuple[str, ...] = (),
    published: Publication | None = None,
) -> PluginDetails:
    """A plugin as the engine shows it, but for fields that make no difference."""
    view = PluginView(name * 3, name, "docker.io/library/p:latest", enabled, State.READY, CONFIG, SETTINGS, tags=tags)
    view = replace(view, published=published)
    document = to_document(to_plugin(view))
    document["Config"]["Args"]["Name"] = "args"
    mount = {"Description": "", "Settable": [], "Destination": "/m", "Type": "bind", "Options": []}
    device = {"Name": "disk", "Path": "/dev/sda", "Description": "", "Settable": []}
    document["Settings"] = {
        "Env": ["A=1", "TOKEN=********"],
        "Mounts": [{**mount, "Name": "data", "Source": "/srv"}, {**mount, "Name": "open", "Source": None}],
        "Devices": [device],
        "Args": ["-v", "two words"],
    }
    return from_document(document, PluginDetails)


def differ(text: str, *plugins: PluginDetails, others: str = "keep") -> PluginDiff:
    (found,) = diff_state(read(f"others: {others}\nplugins:\n{text}"), plugins)
    return found


def test_d09_nothing_differs_where_all_is_as_desired() -> None:
    text = """
- reference: p
  settings: {A: 1, data: /srv, data.source: /srv, disk.path: /dev/sda, args: -v 'two words'}
  secrets: {TOKEN: f}
  policy: {restart: always, max: 0}
"""
    found = differ(text, plugin())
    assert (found.kind, found.texts, found.stop, found.start) == ("none", (), False, False)


HEALTH = """
- reference: p
  health: {call: VolumeDriver.List, cmd: test -e /x, interval: 1m30s, retries: 2, on-failure: restart}
"""


def test_h01_the_file_has_health_checks() -> None:
    change = read(f"plugins:{HEALTH}").plugins[0].policy["health"]
    assert [(each.kind, each.method, each.command) for each in change.checks] == [
        ("call", "VolumeDriver.List", []),
        ("command", "", ["test", "-e", "/x"]),
    ]
    assert (change.interval, change.failures, change.on_failure, change.timeout) == (90, 2, "restart", UNSET)
    assert read("plugins:\n- {reference: p, health: none}").plugins[0].policy["health"].checks == []


def test_h01_only_what_the_file_says_of_health_checks_is_compared() -> None:
    found = plugin()
    change = read(f"plugins:{HEALTH}").plugins[0].policy["health"]
    assert differ(HEALTH, found).texts == (
        "health: none; interval 30; timeout 5; start period 10; failures 3; on failure none -> "
        "VolumeDriver.List, test -e /x; interval 90; failures 2; on failure restart",
    )
    assert found.moorage.policy is not None
    policy = replace(found.moorage.policy, health=PluginHealthPolicy(change.checks, 90, 5, 10, 2, "restart"))
    assert differ(HEALTH, replace(found, moorage=replace(found.moorage, policy=policy))).kind == "none"


@pytest.mark.parametrize(
    ("health", "text"),
    [
        ("often", "p.yaml:3: plugins[0].health: it must be one of false, none"),
        ("{call: x, every: 3s}", "there is no such field"),
        ("{interval: soon}", "p.yaml:3: plugins[0].health.interval: 'soon' is not a duration like 30s or 1m30s"),
        ("{cmd: ''}", "plugins[0].health.cmd: the command is empty"),
        ("{on-failure: stop}", "it must be one of none, kill, restart"),
    ],
)
def test_h01_health_checks_that_cannot_be_read_are_named(health: str, text: str) -> None:
    with pytest.raises(errors.Invalid) as refused:
        read(f"plugins:\n- reference: a\n  health: {health}")
    assert text in str(refused.value)


def test_d09_what_is_missing_is_installed_with_all_that_is_desired() -> None:
    found = differ("- {reference: 'p:2', settings: {A: 2}, secrets: {B: f}, policy: {max: 3}, enabled: false}")
    assert found.kind == "install"
    assert (found.settings, found.secrets, found.policy, found.start) == (("A=2",), ("B",), {"most": 3}, False)
    assert found.texts == (
        "install docker.io/library/p:2",
        'A: "2"',
        "B: a secret, from /etc/moorage/f",
        "policy max: 3",
        "enabled: no",
    )


@pytest.mark.parametrize(
    ("desired", "texts", "steps"),
    [
        ("settings: {A: 2}", ('A: "1" -> "2"',), ("stop", "set", "start")),
        ("settings: {NEW: ''}", ('NEW: not set -> ""',), ("stop", "set", "start")),
        ("settings: {open: /x}", ('open: not set -> "/x"',), ("stop", "set", "start")),
        ("settings: {args: -v}", ('args: "-v \'two words\'" -> "-v"',), ("stop", "set", "start")),
        ("secrets: {OTHER: f}", ("OTHER: a secret, not set -> from /etc/moorage/f",), ("stop", "set", "start")),
        ("policy: {restart: never}", ("policy restart: always -> never",), ()),
        ("policy: {stop-timeout: 3}", ("policy stop-timeout: None -> 3.0",), ()),
        ("enabled: false", ("enabled: yes -> no",), ("stop",)),
        ("enabled: false\n  settings: {A: 2}", ('A: "1" -> "2"', "enabled: yes -> no"), ("stop", "set")),
    ],
)
def test_d09_each_difference_is_reported_and_becomes_as_few_steps_as_can_be(
    desired: str, texts: tuple[str, ...], steps: tuple[str, ...]
) -> None:
    found = differ(f"- reference: p\n  {desired}", plugin())
    assert (found.kind, found.texts) == ("change", texts)
    taken = {"stop": found.stop, "set": bool(found.settings or found.secrets), "start": found.start}
    assert tuple(step for step, is_taken in taken.items() if is_taken) == steps


def test_d09_another_reference_is_an_upgrade_also_by_digest() -> None:
    digest = "sha256:" + "0" * 64
    found = differ(f"- {{reference: 'p@{digest}', name: p}}", plugin())
    assert (found.upgrade, found.stop, found.start) == (True, True, True)
    assert found.texts == (f"reference: docker.io/library/p:latest -> docker.io/library/p@{digest}",)


def test_d09_a_disabled_plugin_is_started_and_a_further_name_is_as_good() -> None:
    found = differ("- {reference: p, name: q}", plugin(enabled=False, tags=("q:latest",)))
    assert (found.texts, found.stop, found.start) == (("enabled: no -> yes",), False, True)


def test_d09_other_plugins_stay_unless_the_file_says_otherwise() -> None:
    other = plugin("other:1")
    keep = diff_state(read("plugins: []"), [other])
    remove = diff_state(read("plugins: []\nothers: remove"), [other])
    assert keep == []
    assert [(each.name, each.kind, each.stop) for each in remove] == [("other:1", "remove", True)]


PUBLISHED = Publication(("p:latest",))


@pytest.mark.parametrize(
    ("line", "publish"),
    [
        ("", None),
        ("publish: no", False),
        ("publish: yes", {"names": []}),
        ("publish: vieux/sshfs", {"names": ["vieux/sshfs"]}),
        ("publish: [a, b]", {"names": ["a", "b"]}),
        ("publish: {group: staff, replay: no, at-once: 3, podman: yes, time-limits: {VolumeDriver.Mount: 300}}",
         {"names": [], "group": "staff", "replay": False, "at_once": 3, "podman": True,
          "time_limits": {"VolumeDriver.Mount": 300}}),
    ],
)  # fmt: skip
def test_p01_a_file_says_how_a_plugin_is_published(line: str, publish: object) -> None:
    assert read(f"plugins:\n- reference: a\n  {line}").plugins[0].publish == publish


@pytest.mark.parametrize(
    ("line", "published", "text"),
    [
        ("", PUBLISHED, ""),
        ("publish: no", PUBLISHED, "publish: as p:latest -> no"),
        ("publish: no", None, ""),
        ("publish: yes", PUBLISHED, ""),
        ("publish: yes", None, "publish: no -> as its name"),
        ("publish: q", PUBLISHED, "publish: as p:latest -> as q"),
        ("publish: {group: staff}", PUBLISHED, "publish: as p:latest -> as its name group=staff"),
        ("publish: yes", Publication(("p:latest",), "staff", 0o660), "publish: as p:latest -> as its name"),
    ],
)
def test_p01_a_difference_in_how_a_plugin_is_published_is_shown(
    line: str, published: Publication | None, text: str
) -> None:
    desired = read(f"plugins:\n- reference: p\n  {line}")
    (diff,) = diff_state(desired, [plugin(published=published)])
    assert list(diff.texts) == ([text] if text else [])
    assert (diff.publish is not None) == bool(text)
    assert not diff.stop
