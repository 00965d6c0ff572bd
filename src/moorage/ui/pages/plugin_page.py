"""One plugin: what it does, what it used, what happened to it, what it writes, and what can be changed."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from urllib.parse import quote

from moorage.api.schema.output import LogLine
from moorage.api.schema.plugins import PluginDetails
from moorage.ui.charts import Chart, draw
from moorage.ui.history import DAY, HOUR, MINUTES
from moorage.ui.markup import Attributes, Child, Element, el, shown
from moorage.ui.pages.events import timeline
from moorage.ui.pages.forms import buttons, results, settings_form, upgrade_form
from moorage.ui.pages.layout import page, section
from moorage.ui.pages.storage import mount_table
from moorage.ui.pages.view import (
    View,
    badge,
    exit_text,
    health_of,
    instant,
    percent,
    reference_of,
    size_text,
    uptime,
)

__all__ = ("log_line", "plugin_page")

_LONGEST_LINE = 2000
_EXTENTS = {"5 minutes": MINUTES, "1 hour": HOUR, "24 hours": DAY}


def plugin_page(view: View, plugin: PluginDetails, lines: Sequence[LogLine]) -> tuple[Child, ...]:
    """The page of a plugin; ``lines`` are the last that it wrote, as far as they fit the filter."""
    name = plugin.name.removesuffix(":latest")
    return page(
        "Plugins",
        view.state,
        el(
            "div",
            {"class": "title"},
            el("h1", {}, name),
            el("div", {"id": "badges", "data-live": True}, _badges(plugin)),
        ),
        el("p", {"class": "muted"}, plugin.config.description),
        _problem(plugin),
        buttons(plugin),
        results(plugin, view.operations.of(plugin.id)),
        _facts(view, plugin),
        _charts(view, plugin),
        section("Output", "output", *_output(view, plugin, lines)),
        section("Timeline", "timeline-title", timeline(view, plugin.id)),
        section("Users", "users", _users(plugin)),
        section("Settings", "settings", settings_form(plugin)),
        section("Version", "version", _version(plugin), upgrade_form(plugin)),
        section("Privileges", "privileges", _privileges(plugin)),
    )


def _badges(plugin: PluginDetails) -> list[Child]:
    health = health_of(plugin)
    return [badge(plugin.moorage.state), " ", badge(health) if health else None]


def _problem(plugin: PluginDetails) -> Element:
    attributes: Attributes = {"id": "plugin-problem", "data-live": True, "role": "status"}
    health = plugin.moorage.health
    texts = [plugin.moorage.problem, *plugin.moorage.warnings]
    if health is not None and health.status == "unhealthy" and health.log:
        texts.append(f"unhealthy: {health.log[-1].output}")
    found = [text for text in texts if text]
    if not found:
        return el("div", {**attributes, "hidden": True})
    return el("div", {**attributes, "class": "banner bad"}, [el("p", {}, text) for text in found])


def _facts(view: View, plugin: PluginDetails) -> Element:
    more = plugin.moorage
    last = more.last_exit
    usage = view.state.usage.get(plugin.id)
    facts: list[tuple[str, Child | list[Child]]] = [
        ("Uptime", uptime(plugin, view.state.at)),
        ("Ready since", instant(more.ready_at)),
        ("Restarts", f"{more.restarts} since it was enabled"),
        ("Last exit", [exit_text(last), " ", instant(last.at)] if last else None),
        ("Next try", instant(more.next_try_at)),
        ("CPU", percent(usage.cpu_percent) if usage else None),
        ("Memory", _with_limit(usage.stats.memory_bytes, usage.stats.memory_limit_bytes) if usage else None),
        ("Processes", str(usage.stats.pids or "") if usage else None),
        ("Pid", str(more.pid or "")),
        ("Restart policy", more.policy.restarts if more.policy else None),
        ("Published as", ", ".join(more.published.names) if more.published else None),
    ]
    items = [el("div", {}, el("dt", {}, key), el("dd", {}, value)) for key, value in facts if value]
    return el("dl", {"class": "facts", "id": "facts", "data-live": True}, items)


def _with_limit(value: int | None, limit: int | None) -> str:
    return size_text(value) if limit is None else f"{size_text(value)} of {size_text(limit)}"


def _charts(view: View, plugin: PluginDetails) -> Element:
    extent = _EXTENTS.get(view.query.get("range", ""), HOUR)
    series = view.history.series(plugin.id, view.now, extent)
    slot, at = extent.slot_seconds, view.state.at
    links = [
        el("a", {"href": f"?range={quote(key)}", "aria-current": "true" if each == extent else None}, key)
        for key, each in _EXTENTS.items()
    ]
    return el(
        "section",
        {"class": "panel", "aria-labelledby": "charts"},
        el("div", {"class": "title"}, el("h2", {"id": "charts"}, "Usage"), el("p", {"class": "ranges"}, links)),
        el(
            "div",
            {"class": "charts"},
            draw(Chart("chart-cpu", "CPU", series.cpu_percent, slot, at, lambda value: f"{value:.3g} %")),
            draw(Chart("chart-memory", "Memory", series.memory_bytes, slot, at, size_text, False, 1048576.0, True)),
            draw(Chart("chart-restarts", "Restarts", series.restarts, slot, at, lambda value: f"{value:g}", True, 4.0)),
        ),
    )


def _output(view: View, plugin: PluginDetails, lines: Sequence[LogLine]) -> Iterator[Child]:
    stream = view.query.get("stream", "")
    options = [el("option", {"value": each, "selected": each == stream}, each) for each in ("stdout", "stderr")]
    yield el(
        "form",
        {"class": "filter", "method": "get", "id": "log-filter", "role": "search", "aria-label": "Output"},
        el("label", {"for": "log-text"}, "Filter"),
        el("input", {"id": "log-text", "name": "text", "type": "search", "value": view.query.get("text", "")}),
        el("label", {"for": "log-stream"}, "Stream"),
        el("select", {"id": "log-stream", "name": "stream"}, el("option", {"value": ""}, "both"), options),
        el("button", {"class": "no-script"}, "Apply"),
        el("button", {"type": "button", "id": "log-pause", "hidden": True, "aria-pressed": "false"}, "Pause"),
        el("span", {"class": "muted", "id": "log-state", "role": "status"}),
    )
    yield el(
        "div",
        {
            "class": "log",
            "id": "log",
            "tabindex": "0",
            "role": "log",
            "aria-live": "off",
            "aria-label": "Output of the plugin",
            "data-log": f"/plugins/{plugin.id[:12]}/logs",
        },
        [_line(line) for line in lines],
    )


def log_line(line: LogLine) -> tuple[str, str, str]:
    """A line as it is shown: the time, the stream, and the text."""
    time = f"{datetime.fromisoformat(line.at).astimezone():%H:%M:%S.%f}"[:-3]
    text = line.text if len(line.text) <= _LONGEST_LINE else f"{line.text[:_LONGEST_LINE]}…"
    return time, line.stream, shown(text)


def _line(line: LogLine) -> Element:
    time, stream, text = log_line(line)
    return el("div", {"class": stream}, el("time", {}, time), el("span", {}, text))


def _users(plugin: PluginDetails) -> Element:
    more = plugin.moorage
    attributes: Attributes = {"id": "users-list", "data-live": True}
    if not more.holders and not more.mounts:
        return el("div", attributes, el("p", {"class": "muted"}, "No program uses it."))
    holders = [el("li", {}, each.owner, " since ", instant(each.since)) for each in more.holders]
    return el(
        "div",
        attributes,
        el("ul", {}, holders) if holders else None,
        mount_table(more.mounts) if more.mounts else None,
    )


def _version(plugin: PluginDetails) -> Element:
    facts = (
        ("Id", plugin.id),
        ("Reference", reference_of(plugin)),
        ("Digest", plugin.moorage.digest),
        ("Further names", ", ".join(plugin.moorage.tags)),
        ("Runtime", plugin.moorage.runtime),
        ("Applied by", plugin.moorage.applied_by),
    )
    items = [el("div", {}, el("dt", {}, key), el("dd", {"class": "path"}, value)) for key, value in facts if value]
    return el("dl", {"class": "facts wide-facts", "id": "version-facts", "data-live": True}, items)


def _privileges(plugin: PluginDetails) -> Element:
    rows = [
        el("li", {}, el("strong", {}, each.name), ": ", ", ".join(each.value)) for each in plugin.moorage.privileges
    ]
    return el("ul", {"class": "plain"}, rows) if rows else el("p", {"class": "muted"}, "It requests none of this host.")
