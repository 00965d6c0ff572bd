"""What every page is made from, and texts and small elements that several of them show."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from msgspec import UNSET, Struct

from moorage._lib.units import size
from moorage.api.schema.plugins import PluginDetails, PluginLastExit
from moorage.ui.history import History
from moorage.ui.markup import Element, el
from moorage.ui.operations import PageOperations
from moorage.ui.timeline import Timeline
from moorage.ui.watcher import EngineState

__all__ = (
    "View",
    "badge",
    "exit_text",
    "health_of",
    "instant",
    "link_to",
    "percent",
    "plugin_path",
    "reference_of",
    "size_text",
    "uptime",
    "users_of",
)

_SHORT = 12
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_TONES = {
    "ready": "good",
    "healthy": "good",
    "done": "good",
    "failed": "bad",
    "unhealthy": "bad",
    "rolled back": "bad",
    "disabled": "off",
}


class View(Struct, frozen=True):
    """What a page is made from, at one instant."""

    state: EngineState
    history: History
    timeline: Timeline
    operations: PageOperations
    query: Mapping[str, str]
    is_live: bool = False
    """Whether only what changes on an open page is needed: the rest may be missing."""

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self.state.at.timestamp()


def badge(text: str, id: str = "") -> Element:
    """A state, by its colour, its sign and its name."""
    attributes = {"class": f"badge {_TONES.get(text, 'busy')}"}
    return el("span", {**attributes, **({"id": id, "data-live": True} if id else {})}, text)


def plugin_path(plugin: PluginDetails) -> str:
    """The permalink of a plugin: the beginning of its id, which a new name does not change."""
    return f"/plugins/{plugin.id[:_SHORT]}"


def link_to(id: str, name: str) -> Element:
    """A link to a plugin of which only this is known."""
    return el("a", {"href": f"/plugins/{id[:_SHORT]}"}, name.removesuffix(":latest"))


def health_of(plugin: PluginDetails) -> str:
    """Healthy, unhealthy or starting; empty for one without checks."""
    return plugin.moorage.health.status if plugin.moorage.health is not None else ""


def uptime(plugin: PluginDetails, now: datetime) -> str:
    """How long its process runs, in its largest unit; empty where none does."""
    started_at = plugin.moorage.started_at
    if not started_at or plugin.moorage.pid is None:
        return ""
    seconds = (now - datetime.fromisoformat(started_at)).total_seconds()
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), (1, "s"))
    count = int(seconds // size)
    # not each second, so that not every row changes with every query
    return f"{count // 10 * 10} s" if unit == "s" else f"{count} {unit}"


def users_of(plugin: PluginDetails) -> int:
    """How many holders and mounts it has."""
    return len(plugin.moorage.holders) + len(plugin.moorage.mounts)


def exit_text(last: PluginLastExit | None) -> str:
    """How the last run ended, or why none did."""
    if last is None:
        return ""
    if last.error and last.code is None:
        return last.error
    text = last.signal or ("unknown status" if last.code is None else f"status {last.code}")
    return f"{text}, out of memory" if last.oom else text


def instant(text: str | datetime | None, *, with_seconds: bool = True) -> Element | None:
    """An instant in the time zone of the machine; the day where it is not today."""
    if not text:
        return None
    at = datetime.fromisoformat(text) if isinstance(text, str) else text
    local = at.astimezone()
    is_recent = abs(datetime.now(local.tzinfo) - local) < timedelta(hours=12)
    shown = f"{local:%H:%M:%S}" if with_seconds else f"{local:%H:%M}"
    full = f"{local:%Y-%m-%d %H:%M:%S %Z}"
    return el("time", {"datetime": local.isoformat(), "title": full}, shown if is_recent else f"{local:%b %d} {shown}")


def percent(value: float | None) -> str:
    """A share of one processor."""
    return "" if value is None else f"{value:.1f} %"


def size_text(value: float | None) -> str:
    """Bytes; empty for None."""
    return "" if value is None else size(value)


def reference_of(plugin: PluginDetails) -> str:
    """The reference that it was installed from; empty where that is unknown."""
    return plugin.plugin_reference if plugin.plugin_reference is not UNSET else ""
