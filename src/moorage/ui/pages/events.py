"""Events: of one plugin as its timeline, with the last lines before each exit, and of all plugins."""

from moorage.ui.markup import Child, Element, el
from moorage.ui.pages.layout import page
from moorage.ui.pages.view import View, instant, link_to
from moorage.ui.timeline import TimelineEvent

__all__ = ("event_page", "timeline")

_MOST = 300
_TONES = {"ready": "good", "die": "bad", "failed": "bad", "backoff": "busy", "restart": "busy"}
_TONES |= {"mount-failed": "bad", "replay-failed": "bad", "undo-failed": "bad", "release-failed": "bad"}
_WORDS = {"die": "exited", "backoff": "waits", "restart": "restarted", "enable": "enabled", "disable": "disabled"}
_WORDS |= {"create": "created", "upgrade": "upgraded", "pull": "pulled", "remove": "removed", "publish": "published"}


def timeline(view: View, id: str) -> Element:
    """The events of a plugin, newest first."""
    rows = [_entry(view, each, with_name=False) for each in view.timeline.of(id)]
    return el("ol", {"class": "timeline", "id": "timeline", "data-list": True}, rows)


def event_page(view: View) -> tuple[Child, ...]:
    """The last events of all plugins."""
    text = view.query.get("q", "").lower()
    found = [each for each in view.timeline.all() if _is_chosen(each, text)][:_MOST]
    empty = "No event fits the filter." if text else "Nothing has happened since the engine was started."
    return page(
        "Events",
        view.state,
        el("h1", {}, "Events"),
        el(
            "form",
            {"class": "filter", "method": "get", "action": "/events", "role": "search", "data-filter": True},
            el("label", {"for": "q"}, "Filter"),
            el(
                "input",
                {
                    "id": "q",
                    "name": "q",
                    "type": "search",
                    "value": view.query.get("q", ""),
                    "placeholder": "name, event, attribute",
                },
            ),
            el("button", {"class": "no-script"}, "Apply"),
        ),
        el(
            "ol",
            {"class": "timeline", "id": "events", "data-list": True},
            [_entry(view, each, with_name=True) for each in found],
        ),
        el("p", {"id": "nothing", "data-live": True, "class": "muted", "hidden": bool(found)}, empty),
    )


def _is_chosen(each: TimelineEvent, text: str) -> bool:
    attributes = " ".join(f"{key}={value}" for key, value in each.attributes.items())
    words = f"{each.name} {each.action} {_WORDS.get(each.action, '')} {attributes}".lower()
    return all(word in words for word in text.split())


def _entry(view: View, each: TimelineEvent, *, with_name: bool) -> Element:
    lines = view.timeline.lines(each)
    shown = el(
        "pre",
        {"class": "lines", "aria-label": "Last lines before it exited"},
        [el("span", {"class": line.stream}, f"{line.text}\n") for line in lines],
    )
    return el(
        "li",
        {"id": f"event-{each.number}", "class": _TONES.get(each.action, "")},
        el(
            "div",
            {"id": f"event-{each.number}-text", "data-live": True},
            instant(each.at),
            " ",
            el("strong", {}, _WORDS.get(each.action, each.action)),
            " ",
            [link_to(each.id, each.name), " "] if with_name else None,
            el("span", {"class": "muted"}, _attributes(each)),
            shown if lines else None,
        ),
    )


def _attributes(each: TimelineEvent) -> str:
    if each.is_exit:
        code, signal = each.attributes.get("code", ""), each.attributes.get("signal", "")
        text = signal or (f"status {code}" if code else "unknown status")
        return f"{text}, out of memory" if each.attributes.get("oom") == "true" else text
    return " ".join(f"{key}={value}" for key, value in each.attributes.items() if value)
