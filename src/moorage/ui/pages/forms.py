"""What a person can do with a plugin: buttons, the forms of settings and versions, and what came of them."""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from moorage.api.schema.base import to_document
from moorage.api.schema.plugins import PluginDetails, PluginPrivilege
from moorage.plugins.settings import MASK
from moorage.ui.markup import Child, Element, el
from moorage.ui.operations import PageOperation
from moorage.ui.pages.view import badge, instant, reference_of

__all__ = ("buttons", "results", "settings_form", "upgrade_form")


class _Field(Struct, frozen=True):
    key: str
    """As `moorage set` takes it."""
    value: str
    description: str
    is_settable: bool


def _form(plugin: PluginDetails, action: str, *children: Child | Iterable[Child], **attributes: str) -> Element:
    return el(
        "form",
        {"method": "post", "action": f"/plugins/{plugin.id[:12]}/{action}", **attributes},
        *children,
    )


def buttons(plugin: PluginDetails) -> Element:
    """Enable, or disable and restart; and what it requests and was not granted."""
    found = []
    force = None
    if plugin.moorage.holders or plugin.moorage.mounts:
        box = el("input", {"type": "checkbox", "name": "force", "value": "yes"})
        force = el("label", {"class": "check"}, box, "although it is in use")
    if plugin.enabled or plugin.moorage.state not in ("disabled", "failed"):
        found.append(_form(plugin, "restart", el("button", {}, "Restart")))
        found.append(_form(plugin, "disable", el("button", {}, "Disable"), force))
    if not plugin.enabled or plugin.moorage.state == "failed":
        found.append(_form(plugin, "enable", el("button", {"class": "main"}, "Enable")))
    return el(
        "div",
        {"id": "buttons", "data-live": True},
        el("div", {"class": "buttons"}, found),
        _grant(plugin) if plugin.moorage.ungranted else None,
    )


def _grant(plugin: PluginDetails) -> Element:
    requested = json.dumps(to_document(plugin.moorage.privileges))
    return _form(
        plugin,
        "grant",
        el("p", {}, "It cannot be enabled before a person grants what it requests of this host:"),
        _privileges(plugin.moorage.ungranted),
        el("input", {"type": "hidden", "name": "privileges", "value": requested}),
        el("button", {"class": "danger"}, "Grant"),
        **{"class": "agree"},
    )


def _privileges(privileges: Sequence[PluginPrivilege]) -> Element:
    return el("ul", {}, [el("li", {}, el("strong", {}, each.name), ": ", ", ".join(each.value)) for each in privileges])


def results(plugin: PluginDetails, operations: Sequence[PageOperation]) -> Element:
    """The last operations that were begun on this page."""
    return el(
        "div",
        {"id": "results", "data-live": True, "role": "status"},
        el("ul", {"class": "results"}, [_result(plugin, each) for each in operations]) if operations else None,
    )


def _result(plugin: PluginDetails, operation: PageOperation) -> Element:
    agree = None
    if operation.new_privileges:
        agree = _form(
            plugin,
            "upgrade",
            _privileges(operation.new_privileges),
            el("input", {"type": "hidden", "name": "reference", "value": operation.reference}),
            el("input", {"type": "hidden", "name": "privileges", "value": operation.privileges}),
            el("button", {"class": "danger"}, "Grant these and upgrade"),
            **{"class": "agree"},
        )
    return el(
        "li",
        {},
        badge(operation.state),
        " ",
        el("strong", {}, operation.action),
        " ",
        instant(operation.started_at),
        " ",
        el("span", {"class": "text"}, operation.text),
        agree,
    )


def upgrade_form(plugin: PluginDetails) -> Element:
    """Another version. One that does not become ready, or healthy, is rolled back."""
    return _form(
        plugin,
        "upgrade",
        el("label", {"for": "reference"}, "Upgrade to"),
        el(
            "input",
            {
                "id": "reference",
                "name": "reference",
                "value": reference_of(plugin),
                "autocomplete": "off",
                "spellcheck": "false",
                "aria-describedby": "upgrade-help",
            },
        ),
        el("button", {}, "Upgrade"),
        el(
            "p",
            {"class": "muted", "id": "upgrade-help"},
            "A reference. A version that does not become ready (healthy, where it has checks) is rolled back.",
        ),
        **{"class": "line"},
    )


def settings_form(plugin: PluginDetails) -> Element:
    """The settings: those that can be set as fields, the others as text. Values of secrets are never in it."""
    fields = list(_fields(plugin))
    if not fields:
        return el("p", {"class": "muted"}, "It has no settings.")
    is_any_settable = any(field.is_settable for field in fields)
    return _form(
        plugin,
        "set",
        [_row(at, field) for at, field in enumerate(fields)],
        el("div", {"class": "buttons"}, el("button", {}, "Set")) if is_any_settable else None,
        el("p", {"class": "muted"}, "An enabled plugin is restarted; if it does not become ready, all is as before.")
        if is_any_settable
        else None,
        **{"class": "settings"},
    )


def _row(at: int, field: _Field) -> Element:
    id, help_id = f"setting-{at}", f"setting-{at}-help"
    label = el("label", {"for": id}, field.key) if field.is_settable else el("span", {"class": "label"}, field.key)
    parts: list[Child] = [label]
    common = {"id": id, "autocomplete": "off", "spellcheck": "false", "aria-describedby": help_id}
    if not field.is_settable:
        parts.append(el("code", {}, field.value))
    elif field.value == MASK:
        hidden = {**common, "type": "password", "name": f"hidden:{field.key}", "placeholder": "secret, does not change"}
        parts.append(el("input", {**hidden, "autocomplete": "new-password"}))
    else:
        secret = el("input", {"type": "checkbox", "name": f"secret:{field.key}", "value": "yes"})
        parts += [
            el("input", {**common, "name": f"value:{field.key}", "value": field.value}),
            el("input", {"type": "hidden", "name": f"before:{field.key}", "value": field.value}),
            el("label", {"class": "check"}, secret, "secret"),
        ]
    parts.append(el("span", {"class": "muted", "id": help_id}, field.description))
    return el("div", {"class": "setting"}, parts)


def _fields(plugin: PluginDetails) -> Iterator[_Field]:
    config, settings = plugin.config, plugin.settings
    env = dict(text.partition("=")[::2] for text in settings.env)
    for entry in config.env:
        yield _Field(entry.name, env.get(entry.name, ""), entry.description, "value" in entry.settable)
    if config.args.name:
        yield _Field(config.args.name, _words(settings.args), config.args.description, "value" in config.args.settable)
    for mount in settings.mounts:
        can_set = "source" in mount.settable
        yield _Field(f"{mount.name}.source", mount.source or "", f"mount at {mount.destination}", can_set)
    for device in settings.devices:
        yield _Field(f"{device.name}.path", device.path or "", device.description, "path" in device.settable)


def _words(arguments: Sequence[str]) -> str:

    return MASK if MASK in arguments else shlex.join(arguments)
