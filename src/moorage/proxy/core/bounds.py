"""What consumers and plugins may take of the proxy: bytes that are stored, and connections (rows P09, S12).

Each plugin has a share, so that one whose calls never end, or whose consumers never do, takes none of the others'.
"""

from collections.abc import Callable, Collection

__all__ = ("MOST_BYTES", "MOST_BYTES_OF_PLUGIN", "Budget", "Connections", "Share")

MOST_BYTES = 128 * 1024 * 1024
"""Of all bodies that are stored at one time."""
MOST_BYTES_OF_PLUGIN = 32 * 1024 * 1024
"""Of those of one plugin's calls."""
_MOST_CONNECTIONS = 5000
"""Of one plugin: more than it may have calls under way."""
_LEAST_CONNECTIONS = 16


class Budget:
    """Bytes of bodies that are stored for one call, out of what all calls together may take."""

    total = 0
    """Of all calls."""
    by_plugin: dict[str, int] = {}  # noqa: RUF012 - of all calls, as the total
    """Of the calls of each plugin."""

    def __init__(self, most_bytes: int, plugin: str) -> None:
        self._most = most_bytes
        self._plugin = plugin
        self._bytes = 0

    def grow(self, size: int) -> bool:
        """Whether so many bytes more may be stored."""
        of_plugin = Budget.by_plugin.get(self._plugin, 0) + size
        if self._bytes + size > self._most or of_plugin > MOST_BYTES_OF_PLUGIN or Budget.total + size > MOST_BYTES:
            return False
        self._bytes += size
        Budget.total += size
        Budget.by_plugin[self._plugin] = of_plugin
        return True

    def free(self) -> None:
        """Nothing is stored any more. May be repeated."""
        if not self._bytes:
            return
        Budget.total -= self._bytes
        Budget.by_plugin[self._plugin] -= self._bytes
        if not Budget.by_plugin[self._plugin]:
            del Budget.by_plugin[self._plugin]
        self._bytes = 0


class Share:
    """The connections of one plugin's consumers, or of the engine to it. Each is known by how it is closed."""

    def __init__(self, idle: float) -> None:
        """``idle``: seconds that a connection waits for its client before it makes room for another one."""
        self._idle = idle
        self._waiting: dict[Callable[[], None], float] = {}
        """Those that wait for their client, and since when, the longest first."""
        self._busy: set[Callable[[], None]] = set()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._busy)

    def wait(self, close: Callable[[], None], now: float) -> None:
        """A connection waits for its client from now on: for a request, or for the rest of one."""
        self._busy.discard(close)
        self._waiting.pop(close, None)
        self._waiting[close] = now

    def work(self, close: Callable[[], None]) -> None:
        """A call is under way on a connection."""
        if self._waiting.pop(close, None) is not None:
            self._busy.add(close)

    def remove(self, close: Callable[[], None]) -> None:
        """A connection was closed. May be repeated."""
        self._waiting.pop(close, None)
        self._busy.discard(close)

    def make_room(self, now: float) -> bool:
        """Close the connection that has waited longest for its client; False where none has waited for a moment."""
        for close, since in self._waiting.items():
            if now - since < self._idle:
                break
            self.remove(close)
            close()
            return True
        return False


class Connections:
    """All connections. Those of consumers who only occupy them make room for others."""

    def __init__(self, descriptors: int, idle: float) -> None:
        """``descriptors``: how many the process may have; ``idle`` as a share has it."""
        self._idle = idle
        self._most_of_one = max(_LEAST_CONNECTIONS, min(_MOST_CONNECTIONS, descriptors // 4))
        self._most = max(_LEAST_CONNECTIONS, descriptors // 2)  # each may need another one, to the plugin
        self._shares: dict[tuple[str, bool], Share] = {}

    def share(self, plugin: str, *, is_internal: bool) -> Share:
        """Of one plugin's consumers, or of the engine's own calls to it."""
        return self._shares.setdefault((plugin, is_internal), Share(self._idle))

    def has_room(self, share: Share, now: float) -> bool:
        """Whether one connection more may be accepted, perhaps instead of one that only waits for its client."""
        if len(share) >= self._most_of_one:
            return share.make_room(now)
        if sum(map(len, self._shares.values())) >= self._most:
            return max(self._shares.values(), key=len).make_room(now)
        return True

    def forget(self, plugins: Collection[str]) -> None:
        """Drop the shares of all but these plugins, as soon as they have no connection."""
        for key in [key for key, share in self._shares.items() if key[0] not in plugins and not len(share)]:
            del self._shares[key]
