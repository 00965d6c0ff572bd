"""Plugins in a table. Rows are made from the objects of the API as documents, which need no typed values."""

from moorage._lib.units import ago, duration
from moorage.cli.terminal import print_json, say, styled, table

__all__ = ("plugin_fields", "plugin_id", "print_plugins")

_HEAD = ("ID", "NAME", "STATE", "UPTIME", "RESTARTS", "LAST EXIT", "NEXT TRY", "DESCRIPTION")
_SHORT = 12
_DESCRIPTION = 32
_COLOURS = {"ready": "green", "failed": "red", "restarting": "yellow", "stopping": "yellow", "removing": "yellow"}
_COLOURS |= {"healthy": "green", "unhealthy": "red"}

TYPE_CHECKING = False  # not from typing, which every command would wait for
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Document = Mapping[str, Any]


def print_plugins(plugins: "Sequence[Document]", *, quiet: bool, no_trunc: bool, is_json: bool) -> None:
    """Print plugins by name: as a table, ``quiet`` their ids only, each as a JSON object."""
    found = sorted(plugins, key=lambda plugin: str(plugin["Name"]))
    if quiet:
        for id in [plugin_id(plugin, no_trunc=no_trunc) for plugin in found]:
            if is_json:
                print_json({"Id": id})
            else:
                say(id)
    elif is_json:
        for plugin in found:
            print_json(plugin)
    else:
        _print_table(found, no_trunc=no_trunc)


def _print_table(plugins: "Sequence[Document]", *, no_trunc: bool) -> None:
    columns = [(name, show) for name, show in _MORE.items() if any(show(plugin) for plugin in plugins)]
    rows = [(*_row(plugin, no_trunc=no_trunc), *(show(plugin) for _, show in columns)) for plugin in plugins]
    table((*_HEAD, *(name for name, _ in columns)), rows, is_cut=not no_trunc)


def plugin_id(plugin: "Document", *, no_trunc: bool) -> str:
    """Its id, in short unless ``no_trunc``."""
    return str(plugin["Id"] if no_trunc else plugin["Id"][:_SHORT])


def _description(plugin: "Document", *, no_trunc: bool) -> str:
    text = str(plugin["Config"]["Description"])
    return text if no_trunc or len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 1] + "…"


def plugin_fields(plugin: "Document", *, no_trunc: bool) -> "dict[str, Any]":
    """The fields of a template; the first five are docker's."""
    more = plugin["Moorage"]
    return {
        "ID": plugin_id(plugin, no_trunc=no_trunc),
        "Name": plugin["Name"],
        "Description": _description(plugin, no_trunc=no_trunc),
        "Enabled": plugin["Enabled"],
        "PluginReference": plugin.get("PluginReference", ""),
        "State": more["State"],
        "Uptime": _uptime(plugin),
        "Restarts": more["Restarts"],
        "LastExit": _last_exit(more["LastExit"]),
        "NextTry": ago(more["NextTryAt"]),
        "Capabilities": ",".join(plugin["Config"]["Interface"]["Types"]),
        "Pid": more["Pid"],
        "Digest": more["Digest"],
        "Tags": ",".join(more["Tags"]),
        "Labels": ",".join(f"{key}={value}" for key, value in more.get("Labels", {}).items()),
        "WidenedBy": _widenings(plugin),
    }


def _row(plugin: "Document", *, no_trunc: bool) -> tuple[str, ...]:
    more = plugin["Moorage"]
    return (
        plugin_id(plugin, no_trunc=no_trunc),
        plugin["Name"],
        styled(more["State"], _COLOURS.get(more["State"])),
        _uptime(plugin),
        str(more["Restarts"]),
        _last_exit(more["LastExit"]),
        ago(more["NextTryAt"]),
        _description(plugin, no_trunc=no_trunc),
    )


def _uptime(plugin: "Document") -> str:
    seconds = plugin["Moorage"]["UptimeSeconds"]
    return "" if seconds is None else duration(seconds) or "0 seconds"


def _widenings(plugin: "Document") -> str:
    """What the policy grants beyond the default."""
    return ", ".join(f"{each['Name']}: {', '.join(each['Value'])}" for each in plugin["Moorage"]["Widenings"])


def _published(plugin: "Document") -> str:
    """Names of its sockets for consumers."""
    published = plugin["Moorage"]["Published"]
    return ", ".join(published["Names"]) if published else ""


def _health(plugin: "Document") -> str:
    """What its health checks say."""
    health = plugin["Moorage"]["Health"]
    return styled(health["Status"], _COLOURS.get(health["Status"])) if health else ""


_MORE = {"HEALTH": _health, "WIDENED BY": _widenings, "PUBLISHED AS": _published}
"""Columns that are only shown where one of their cells has a text."""


def _last_exit(last: "Document | None") -> str:
    """How the last run exited, and when. One that did not start has neither code nor signal."""
    if last is None:
        return ""
    how = last["Signal"] or ("unknown" if last["Code"] is None else str(last["Code"]))
    if last["OOM"]:
        how = "out of memory"
    elif last["Code"] is None and last["Error"]:
        how = "did not start"
    at = last["At"]
    return f"{how}, {ago(at)}" if at else how
