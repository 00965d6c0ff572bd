"""Volumes and their users, and what plugins occupy on the disk. Both are queried for each page: they cost something."""

from collections.abc import Iterable, Sequence

from moorage.api.schema.consumers import PluginMountUse, VolumeList
from moorage.api.schema.system import DiskUsageReport
from moorage.ui.markup import Child, Element, el
from moorage.ui.pages.layout import page
from moorage.ui.pages.view import View, instant, link_to, size_text

__all__ = ("disk_page", "mount_table", "volume_page")


def volume_page(view: View, volumes: VolumeList) -> tuple[Child, ...]:
    """Every volume of every driver, with the programs that use it."""
    rows = [
        [
            el("th", {"scope": "row"}, each.name),
            el("td", {}, el("a", {"href": f"/plugins/{each.driver}"}, each.driver.removesuffix(":latest"))),
            el("td", {}, each.scope),
            el("td", {"class": "path"}, each.mountpoint),
            el("td", {}, _users(each.mounts)),
        ]
        for each in volumes.volumes
    ]
    failures = [
        el("div", {"class": "banner bad"}, el("strong", {}, f"{each.driver} did not list its volumes: "), each.message)
        for each in volumes.failures
    ]
    return page(
        "Volumes",
        view.state,
        el("h1", {}, "Volumes"),
        failures,
        _table("Table of volumes", ("Volume", "Driver", "Scope", "Path on the host", "Used by"), rows)
        if rows
        else el("p", {"class": "muted"}, "There are no volumes of plugins that run."),
    )


def _users(mounts: Sequence[PluginMountUse]) -> list[Child]:
    if not mounts:
        return [el("span", {"class": "muted"}, "no program")]
    return [el("ul", {"class": "plain"}, [el("li", {}, each.consumer, " ", _mount_state(each)) for each in mounts])]


def _mount_state(each: PluginMountUse) -> Element:
    if each.problem:
        return el("span", {"class": "bad"}, each.problem)
    if each.stale:
        return el("span", {"class": "bad"}, "sees the mount from before a restart")
    return el("span", {"class": "muted"}, "since ", instant(each.since))


def mount_table(mounts: Sequence[PluginMountUse]) -> Element:
    """The mounts of the volumes of one plugin."""
    rows = [
        [
            el("th", {"scope": "row"}, each.volume),
            el("td", {}, each.consumer),
            el("td", {"class": "path"}, each.path),
            el("td", {}, _mount_state(each)),
        ]
        for each in mounts
    ]
    return _table("Mounts of its volumes", ("Volume", "Used by", "Path on the host", "State"), rows)


def disk_page(view: View, usage: DiskUsageReport) -> tuple[Child, ...]:
    """What each plugin occupies, the largest first."""
    plugins = sorted(usage.plugins, key=lambda each: -_whole(each.written_bytes, each.data_bytes, each.layers_bytes))
    rows = [
        [
            el("th", {"scope": "row"}, link_to(each.id, each.name)),
            *(
                el("td", {"class": "number"}, size_text(value))
                for value in (
                    each.package_bytes,
                    each.layers_bytes,
                    each.written_bytes,
                    each.data_bytes,
                    each.logs_bytes,
                )
            ),
        ]
        for each in plugins
    ]
    facts = (
        ("Packages", usage.content_bytes),
        ("Layers", usage.layers_bytes),
        ("Written by plugins", usage.written_bytes),
        ("Uploads under way or left over", usage.uploads_bytes),
        ("Not referenced, freed by moorage prune", usage.unreferenced_bytes),
    )
    return page(
        "Disk",
        view.state,
        el("h1", {}, "Disk"),
        el(
            "dl", {"class": "facts"}, [el("div", {}, el("dt", {}, key), el("dd", {}, size_text(n))) for key, n in facts]
        ),
        _table("Disk usage of plugins", ("Plugin", "Package", "Layers", "Written", "Data", "Output"), rows, "number")
        if rows
        else el("p", {"class": "muted"}, "There are no plugins."),
        el("p", {"class": "muted"}, "Layers and packages that several plugins share are counted at each of them."),
    )


def _whole(*parts: int) -> int:
    return sum(parts)


def _table(label: str, heads: Iterable[str], rows: Iterable[Iterable[Element]], style: str = "") -> Element:
    titles = [
        el("th", {"scope": "col", "class": style if at and style else None}, head) for at, head in enumerate(heads)
    ]
    return el(
        "div",
        {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": label},
        el("table", {}, el("thead", {}, el("tr", {}, titles)), el("tbody", {}, [el("tr", {}, row) for row in rows])),
    )
