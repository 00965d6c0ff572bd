"""Lines of output of plugins, as the command logs shows them."""

from datetime import UTC, datetime

from moorage.cli.terminal import print_json, say, styled

__all__ = ("LogPrinter",)

_COLOURS = ("cyan", "yellow", "green", "magenta", "blue")

TYPE_CHECKING = False  # not from typing, which every command would wait for
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Document = Mapping[str, Any]
    """A line as the API sends it."""


class LogPrinter:
    """Prints lines; those of several plugins have their names before them."""

    def __init__(
        self, names: tuple[str, ...], *, is_json: bool, timestamps: bool, no_log_prefix: bool, raw: bool
    ) -> None:
        """``names`` are those of the plugins, none for a single one; the others are the options of the command."""
        self._width = max((len(name) for name in names), default=0)
        self._colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}
        self._is_json, self._timestamps, self._is_bare, self._raw = is_json, timestamps, no_log_prefix, raw

    def line(self, name: str, line: "Document") -> None:
        """Print a line of the plugin ``name``."""
        if self._is_json:
            self._document(name, line)
            return
        if self._is_bare and not self._timestamps:
            say(line["text"], colours=self._raw)
            return
        at = datetime.fromisoformat(line["at"])
        time = f"{at.astimezone():%Y-%m-%d %H:%M:%S.%f}"[:-3]
        if self._timestamps:
            time = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"
        stream = line["stream"]
        label = styled(stream + ("+" if line.get("partial") else ""), "red" if stream == "stderr" else "blue")
        if self._is_bare:
            say(f"{time} ", line["text"], colours=self._raw)
            return
        owner = (styled(name.ljust(self._width), self._colours[name]), " ") if self._colours else ()
        say(*owner, f"{time} ", label, " | ", line["text"], colours=self._raw)

    def _document(self, name: str, line: "Document") -> None:
        print_json({"plugin": name, **line} if self._colours else line)
