"""The frame of every page: head, navigation, and whether the engine answers."""

from collections.abc import Iterable

from moorage._version import __version__
from moorage.ui.markup import Attributes, Child, Element, el
from moorage.ui.pages.view import instant
from moorage.ui.watcher import EngineState

__all__ = ("document", "message_page", "page", "section")

_SECTIONS = (("Plugins", "/"), ("Events", "/events"), ("Volumes", "/volumes"), ("Disk", "/disk"))


def document(title: str, *body: Child, key: str = "") -> str:
    """The HTML of a page. ``key`` is what an open page connects with for its changes."""
    head = el(
        "head",
        {},
        el("meta", {"charset": "utf-8"}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("meta", {"name": "color-scheme", "content": "light dark"}),
        el("title", {}, f"{title} · Moorage"),
        el("link", {"rel": "icon", "href": "/static/icon.svg", "type": "image/svg+xml"}),
        el("link", {"rel": "stylesheet", "href": f"/static/page.css?{__version__}"}),
        el("script", {"src": f"/static/page.js?{__version__}", "defer": True}),
    )
    whole = el("html", {"lang": "en"}, head, el("body", {"data-key": key or None}, *body))
    return f"<!DOCTYPE html>\n{whole.html()}\n"


def page(current: str, state: EngineState, *body: Child | Iterable[Child]) -> tuple[Child, ...]:
    """The frame around a page of this section."""
    links = [
        el("li", {}, el("a", {"href": path, "aria-current": "page" if name == current else None}, name))
        for name, path in _SECTIONS
    ]
    return (
        el("a", {"class": "skip", "href": "#main"}, "Skip to the content"),
        el(
            "header",
            {"class": "top"},
            el("a", {"class": "brand", "href": "/"}, "Moorage"),
            el("nav", {"aria-label": "Sections"}, el("ul", {}, links)),
            _engine(state),
            el("form", {"method": "post", "action": "/logout"}, el("button", {"class": "quiet"}, "Sign out")),
        ),
        el("div", {"role": "status", "id": "connection", "hidden": True}),
        _problem(state),
        el("main", {"id": "main", "tabindex": "-1"}, *body),
    )


def _engine(state: EngineState) -> Element:
    info = state.info
    text = "" if info is None else f"{info.name} · Moorage {info.server_version}"
    return el("span", {"class": "engine muted", "id": "engine", "data-live": True}, text)


def _problem(state: EngineState) -> Element:
    """Whether the engine answers, and whether it can run plugins. Screen readers read what changes."""
    attributes: Attributes = {"id": "problem", "data-live": True, "role": "status"}
    if state.problem:
        since = [" since ", instant(state.since)] if state.since else []
        return el(
            "div",
            {**attributes, "class": "banner bad"},
            el("strong", {}, "The engine does not answer", since, ". "),
            f"{state.problem}. This page shows what was last known, and tries again.",
        )
    if state.info is not None and state.info.moorage.problem:
        shown = el("strong", {}, "Plugins cannot be started or stopped now: ")
        return el("div", {**attributes, "class": "banner bad"}, shown, state.info.moorage.problem)
    if state.since is not None and (state.at - state.since).total_seconds() < 60:
        return el(
            "div", {**attributes, "class": "banner good"}, "The engine answers again since ", instant(state.since)
        )
    return el("div", {**attributes, "class": "banner", "hidden": True})


def section(title: str, id: str, *body: Child) -> Element:
    """A part of a page with a heading."""
    return el("section", {"aria-labelledby": id, "class": "panel"}, el("h2", {"id": id}, title), body)


def message_page(title: str, text: str) -> str:
    """A page that only says something."""
    body = el("main", {"id": "main", "class": "narrow"}, el("h1", {}, title), el("p", {}, text), _back())
    return document(title, body)


def _back() -> Element:
    return el("p", {}, el("a", {"href": "/"}, "All plugins"))
