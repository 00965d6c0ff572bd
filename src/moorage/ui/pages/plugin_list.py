"""All plugins: a table that can be filtered and sorted."""

from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct

from moorage.api.schema.plugins import PluginDetails
from moorage.ui.charts import draw_small
from moorage.ui.history import HOUR
from moorage.ui.markup import Attributes, Child, Element, el
from moorage.ui.pages.layout import page
from moorage.ui.pages.view import (
    View,
    badge,
    exit_text,
    health_of,
    instant,
    percent,
    plugin_path,
    size_text,
    uptime,
    users_of,
)

__all__ = ("plugin_list",)

_STATES = ("ready", "starting", "restarting", "stopping", "failed", "disabled")
_KEYS = ("q", "state", "sort", "order")


class _Column(Struct, frozen=True):
    key: str
    title: str
    show: Callable[[View, PluginDetails], Child | list[Child]]
    rank: Callable[[View, PluginDetails], Any]
    """What it is sorted by."""
    style: str = ""


def plugin_list(view: View) -> tuple[Child, ...]:
    """The page of all plugins."""
    found = _sorted(view, [plugin for plugin in view.state.plugins if _is_chosen(view, plugin)])
    return page(
        "Plugins",
        view.state,
        el("div", {"class": "title"}, el("h1", {}, "Plugins"), _summary(view)),
        _filter(view),
        el(
            "div",
            {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "Table of plugins"},
            el(
                "table",
                {"class": "plugins"},
                el("thead", {}, el("tr", {}, [_head(view, column) for column in _COLUMNS])),
                el("tbody", {"id": "rows", "data-list": True}, [_row(view, plugin) for plugin in found]),
            ),
        ),
        _nothing(view, found),
    )


def _summary(view: View) -> Element:
    counts = Counter(plugin.moorage.state for plugin in view.state.plugins)
    unhealthy = sum(health_of(plugin) == "unhealthy" for plugin in view.state.plugins)
    parts = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
    parts += [f"{unhealthy} unhealthy"] if unhealthy else []
    return el("p", {"class": "muted", "id": "summary", "data-live": True}, " · ".join(parts))


def _nothing(view: View, found: list[PluginDetails]) -> Element:
    attributes: Attributes = {"id": "nothing", "data-live": True, "class": "muted"}
    if found:
        return el("p", {**attributes, "hidden": True})
    text = "No plugin fits the filter." if view.state.plugins else "There are no plugins."
    return el("p", attributes, text)


def _filter(view: View) -> Element:
    chosen = view.query.get("state", "")
    options = [el("option", {"value": each, "selected": each == chosen}, each) for each in (*_STATES, "unhealthy")]
    return el(
        "form",
        {"class": "filter", "method": "get", "action": "/", "role": "search", "data-filter": True},
        el("label", {"for": "q"}, "Filter"),
        el(
            "input",
            {"id": "q", "name": "q", "type": "search", "value": view.query.get("q", ""), "placeholder": "name, text"},
        ),
        el("label", {"for": "state"}, "State"),
        el("select", {"id": "state", "name": "state"}, el("option", {"value": ""}, "any"), options),
        [
            el("input", {"type": "hidden", "name": key, "value": view.query[key]})
            for key in _KEYS[2:]
            if view.query.get(key)
        ],
        el("button", {"class": "no-script"}, "Apply"),
    )


def _is_chosen(view: View, plugin: PluginDetails) -> bool:
    text, state = view.query.get("q", "").lower(), view.query.get("state", "")
    if state and state not in (plugin.moorage.state, health_of(plugin)):
        return False
    words = f"{plugin.name} {plugin.id} {plugin.config.description} {exit_text(plugin.moorage.last_exit)}".lower()
    return all(word in words for word in text.split())


def _sorted(view: View, plugins: list[PluginDetails]) -> list[PluginDetails]:
    column = next((each for each in _COLUMNS if each.key == view.query.get("sort")), _COLUMNS[1])
    is_down = view.query.get("order") == "down"
    return sorted(plugins, key=lambda plugin: (column.rank(view, plugin), plugin.name), reverse=is_down)


def _head(view: View, column: _Column) -> Element:
    is_sorted = view.query.get("sort", "name") == column.key
    is_down = view.query.get("order") == "down"
    next_order = "up" if is_sorted and is_down else "down" if is_sorted else "up"
    query = {key: view.query[key] for key in ("q", "state") if view.query.get(key)}
    target = urlencode({**query, "sort": column.key, "order": next_order})
    order = ("descending" if is_down else "ascending") if is_sorted else None
    link = el("a", {"href": f"/?{target}", "data-sort": True}, column.title)
    attributes: Attributes = {"id": f"head-{column.key}", "data-live": True, "scope": "col", "aria-sort": order}
    return el("th", {**attributes, "class": column.style or None}, link)


def _row(view: View, plugin: PluginDetails) -> Element:
    short = plugin.id[:12]
    cells = [
        el(
            "th" if column.key == "name" else "td",
            {
                "id": f"{column.key}-{short}",
                "data-live": True,
                "class": column.style or None,
                "scope": "row" if column.key == "name" else None,
            },
            column.show(view, plugin),
        )
        for column in _COLUMNS
    ]
    return el("tr", {"id": f"row-{short}"}, cells)


def _name(_: View, plugin: PluginDetails) -> list[Child]:
    name = plugin.name.removesuffix(":latest")
    return [
        el("a", {"href": plugin_path(plugin)}, name),
        el("span", {"class": "description muted"}, plugin.config.description),
    ]


def _state(_: View, plugin: PluginDetails) -> list[Child]:
    health = health_of(plugin)
    return [badge(plugin.moorage.state), badge(health) if health and health != "healthy" else None]


def _cpu(view: View, plugin: PluginDetails) -> list[Child]:
    usage = view.state.usage.get(plugin.id)
    if usage is None:
        return []
    series = view.history.series(plugin.id, view.now, HOUR).cpu_percent
    return [draw_small(series, "cpu"), percent(usage.cpu_percent)]


def _memory(view: View, plugin: PluginDetails) -> list[Child]:
    usage = view.state.usage.get(plugin.id)
    if usage is None:
        return []
    series = view.history.series(plugin.id, view.now, HOUR).memory_bytes
    return [draw_small(series, "memory"), size_text(usage.stats.memory_bytes)]


def _last_exit(_: View, plugin: PluginDetails) -> list[Child]:
    last = plugin.moorage.last_exit
    if last is None:
        return []
    return [exit_text(last), " " if last.at else None, el("span", {"class": "muted"}, instant(last.at))]


def _since(view: View, plugin: PluginDetails) -> float:
    return plugin.moorage.uptime_seconds or 0.0


def _used(view: View, plugin: PluginDetails) -> tuple[float, float]:
    usage = view.state.usage.get(plugin.id)
    return (usage.cpu_percent or 0.0, usage.stats.memory_bytes or 0.0) if usage else (-1.0, -1.0)


_COLUMNS = (
    _Column("state", "State", _state, lambda _, plugin: (plugin.moorage.state, health_of(plugin))),
    _Column("name", "Name", _name, lambda _, plugin: plugin.name, "name"),
    _Column(
        "restarts",
        "Restarts",
        lambda _, plugin: str(plugin.moorage.restarts),
        lambda _, plugin: plugin.moorage.restarts,
        "number",
    ),
    _Column("uptime", "Uptime", lambda view, plugin: uptime(plugin, view.state.at), _since, "number wide"),
    _Column("cpu", "CPU", _cpu, lambda view, plugin: _used(view, plugin)[0], "number"),
    _Column("memory", "Memory", _memory, lambda view, plugin: _used(view, plugin)[1], "number"),
    _Column(
        "users",
        "Users",
        lambda _, plugin: str(users_of(plugin) or ""),
        lambda _, plugin: users_of(plugin),
        "number wide",
    ),
    _Column("exit", "Last exit", _last_exit, lambda _, plugin: exit_text(plugin.moorage.last_exit), "wide"),
)
