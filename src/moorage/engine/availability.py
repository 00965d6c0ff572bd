"""Whether there is a containerd to run plugins on and what runs of each is known; calls wait for both, bounded."""

import anyio

from moorage import errors
from moorage.engine.machinery import Machinery
from moorage.engine.plugin import Plugin
from moorage.timeouts import Timeouts

__all__ = ("Availability",)


class Availability:
    """What plugins run on, while it is there."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.machinery: Machinery | None = None
        self.problem = "containerd is not there yet"
        self.is_lasting = False
        """Whether the problem stays until an operator does something: nobody waits for that."""
        self._changed = anyio.Event()

    def found(self, machinery: Machinery) -> None:
        """There is something to run plugins on."""
        self.machinery, self.problem, self.is_lasting = machinery, "", False
        self._notify()

    def lost(self, problem: str) -> None:
        """There is nothing to run plugins on any more."""
        self.machinery = None
        self.hinder(problem)

    def hinder(self, problem: str, *, is_lasting: bool = False) -> None:
        """Plugins cannot be started or stopped for this reason; empty where they can be again."""
        self.problem, self.is_lasting = problem, is_lasting
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def need_machinery(self) -> Machinery:
        """What plugins run on. Raises: Unavailable while it is not there."""
        if self.machinery is None or self.problem:
            raise errors.Unavailable(f"cannot do that now: {self.problem}")
        return self.machinery

    async def await_machinery(self) -> Machinery:
        """What plugins run on, waited for at most ``containerd_wait``. Raises: Unavailable."""
        with anyio.move_on_after(self.timeouts.containerd_wait):
            while (self.machinery is None or self.problem) and not self.is_lasting:
                await self._changed.wait()
        return self.need_machinery()

    async def changed(self) -> None:
        """Return when ``machinery`` has changed."""
        await self._changed.wait()

    async def await_settled(self, plugin: Plugin) -> None:
        """Return when what ran of a plugin is taken over, at most after ``containerd_wait``."""
        with anyio.move_on_after(0 if self.is_lasting else self.timeouts.containerd_wait):
            await plugin.settled.wait()

    async def await_known(self, plugin: Plugin) -> None:
        """Return when it is known what runs of a plugin. Raises: Unavailable after ``containerd_wait``."""
        with anyio.move_on_after(0 if self.is_lasting else self.timeouts.containerd_wait):
            await plugin.known.wait()
            return
        why = plugin.problem or self.problem or "containerd does not answer"
        raise errors.Unavailable(f"cannot change plugin {plugin.name} yet: what runs of it is not known: {why}")
