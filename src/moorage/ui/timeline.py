"""What happened to plugins: their events, and for each exit the last lines before it. Bounded for each and in all."""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from moorage.api.schema.output import LogLine
from moorage.api.schema.system import EventMessage

__all__ = ("LAST_LINES", "Timeline", "TimelineEvent", "lines_before")

LAST_LINES = 5
_MOST_EVENTS = 500
_MOST_OF_ONE = 60
_LONGEST_LINE = 500


class TimelineEvent(Struct, frozen=True):
    """One event of a plugin."""

    number: int
    """Rises with each event that was seen, and names it."""
    nanoseconds: int
    """Since 1970."""
    action: str
    id: str
    name: str
    attributes: dict[str, str]

    @property
    def at(self) -> datetime:
        """When it was."""
        return datetime.fromtimestamp(self.nanoseconds / 1e9, UTC)

    @property
    def is_exit(self) -> bool:
        """Whether a process of the plugin exited."""
        return self.action == "die"


class Timeline:
    """The last events of all plugins, and of each one."""

    def __init__(self) -> None:
        self._all: deque[TimelineEvent] = deque(maxlen=_MOST_EVENTS)
        self._of: dict[str, deque[TimelineEvent]] = {}
        self._lines: dict[int, tuple[LogLine, ...]] = {}
        self._number = 0
        self.newest = 0
        """The instant of the last event, in nanoseconds since 1970; 0 where there was none."""

    def add(self, message: EventMessage) -> TimelineEvent | None:
        """Take an event; None for one that was seen before."""
        if message.time_nano <= self.newest:
            return None
        self.newest = message.time_nano
        self._number += 1
        attributes = dict(message.actor.attributes)
        name = attributes.pop("name", "")
        made = TimelineEvent(self._number, message.time_nano, message.action, message.actor.id, name, attributes)
        self._all.append(made)
        self._of.setdefault(made.id, deque(maxlen=_MOST_OF_ONE)).append(made)
        return made

    def add_lines(self, exit: TimelineEvent, lines: Sequence[LogLine]) -> None:
        """Note what a plugin wrote last before an exit."""
        self._lines[exit.number] = tuple(lines)
        known = {each.number for each in self._all} | {each.number for of in self._of.values() for each in of}
        for number in self._lines.keys() - known:
            del self._lines[number]

    def keep_only(self, ids: Iterable[str]) -> None:
        """Forget the events of single plugins that are not among these; they stay among those of all."""
        for id in self._of.keys() - set(ids):
            del self._of[id]

    def of(self, id: str) -> list[TimelineEvent]:
        """The events of a plugin, newest first."""
        return list(reversed(self._of.get(id, ())))

    def exit_before(self, exit: TimelineEvent) -> TimelineEvent | None:
        """The previous exit of its plugin; None where none is known."""
        earlier = (each for each in self.of(exit.id) if each.is_exit and each.number < exit.number)
        return next(earlier, None)

    def all(self) -> list[TimelineEvent]:
        """The events of all plugins, newest first."""
        return list(reversed(self._all))

    def lines(self, event: TimelineEvent) -> Sequence[LogLine]:
        """The last lines before an exit; none for other events."""
        return self._lines.get(event.number, ())


def lines_before(lines: Iterable[LogLine], exit: TimelineEvent, previous: TimelineEvent | None) -> list[LogLine]:
    """The last few of these lines between the exit before and this one, each of bounded length."""
    begins = previous.nanoseconds if previous else 0
    before = [line for line in lines if begins < _nanoseconds(line.at) <= exit.nanoseconds]
    return [LogLine(line.at, line.stream, line.text[:_LONGEST_LINE]) for line in before[-LAST_LINES:]]


def _nanoseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1e9)
