"""One plugin in the engine's memory: its record, its state, its present run. Changed only by its own inbox."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from msgspec.structs import replace

from moorage.engine.lifecycle import Event, Life, State, move
from moorage.engine.meter import Meter, PluginCounts
from moorage.engine.places import PluginPlaces
from moorage.engine.store import Record
from moorage.engine.values import Holder, PluginView
from moorage.executor import Exit
from moorage.logs.files import PluginLog
from moorage.plugins import (
    NO_CONFINEMENT,
    Config,
    Confinement,
    Privilege,
    Settings,
    compute_privileges,
    effective_settings,
    find_missing,
    masked,
    parse_config,
    resolve_confinement,
    widenings,
)

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess

__all__ = ("Plugin", "Run")


class Run:
    """One run of a plugin: one container, used once."""

    def __init__(self, container: str) -> None:
        self.container = container
        self.exit: Exit | None = None
        self.ended = anyio.Event()
        """Set when everything of the run is removed."""
        self.pid: int | None = None
        self.started_at: datetime | None = None
        """When its process began, as the kernel knows it: the same for an engine that comes later."""
        self.begun_at = datetime.now(UTC)

    def end(self, exit: Exit) -> None:
        """The executor's word."""
        self.exit = exit
        self.ended.set()


class Plugin:
    """What an engine knows of a plugin, and what it is doing with it."""

    def __init__(
        self,
        record: Record,
        places: PluginPlaces,
        log: PluginLog,
        meter: Meter,
        defaults: Confinement = NO_CONFINEMENT,
    ) -> None:
        """Raises: Invalid where the config of the record cannot be read."""
        self.record = record
        self.config: Config = parse_config(record.config.encode(), is_stored=True).config
        self.places = places
        self.log = log
        self._defaults = defaults
        self.counts = PluginCounts(meter)
        self.life = Life(State.REMOVING) if record.removing else Life(failures=record.failures)
        self.run: Run | None = None
        self.problem = ""
        self.removed = anyio.Event()
        """Set when it is being removed: it has stopped for ever, and all its output is in its log."""
        if record.removing:
            self.removed.set()
        self._attached: dict[str, tuple[Holder, anyio.Event]] = {}
        """Holders that last as long as their connection, each with what tells it to let go."""
        self._let_go = anyio.Event()
        self.added: dict[str, AddedProcess] = {}
        """Processes beside its own, by their ids."""
        self.is_asked = False
        """Whether a user waits for the start that is under way; only its success makes the plugin enabled."""
        self.stops = 0
        """Stops that are asked for and not done; nothing is started by itself before them."""
        self.known = anyio.Event()
        """Set when it is known what runs of it: until then nothing can be done with it."""
        self.settled = anyio.Event()
        """Set when what ran of it at the engine's start was taken over, or does not run."""
        self.starting: anyio.CancelScope | None = None
        self.waiting: anyio.CancelScope | None = None
        self._ready_since: float | None = None
        self._ready_at: datetime | None = None

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.record.id

    @property
    def name(self) -> str:
        """Its local name, always with a tag."""
        return self.record.name

    def is_called(self, name: str | None) -> bool:
        """Whether this local name is one of its names."""
        return name == self.record.name or name in self.record.tags

    @property
    def state(self) -> State:
        """What it really does."""
        return self.life.state

    @property
    def is_enabled(self) -> bool:
        """What the user wants, as far as it was granted."""
        return self.record.enabled and not self.is_asked

    @property
    def is_ready(self) -> bool:
        """Whether its socket accepts."""
        return self.state is State.READY

    def settings(self) -> Settings:
        """What it runs with."""
        return effective_settings(self.config, self.record.overrides)

    @property
    def confinement(self) -> Confinement:
        """What confines its next run: every field has a value."""
        return resolve_confinement(self.record.confinement, self._defaults)

    @property
    def id_base(self) -> int:
        """First host id of its user namespace; 0 where it has none of its own."""
        return self.record.id_base if self.confinement.userns == "auto" else 0

    def privileges(self) -> tuple[Privilege, ...]:
        """What it requests with its settings; secret ones are in here."""
        return compute_privileges(self.config, self.settings())

    def shown_privileges(self) -> tuple[Privilege, ...]:
        """The same in the same order, without secrets."""
        return compute_privileges(self.config, masked(self.settings()))

    def _ungranted(self) -> tuple[Privilege, ...]:
        if self.record.granted is None:
            return ()
        wanted = self.privileges()
        missing = [id(each) for each in find_missing(wanted, self.record.granted)]
        pairs = zip(wanted, self.shown_privileges(), strict=True)
        return tuple(shown for each, shown in pairs if id(each) in missing)

    def move(self, event: Event) -> None:
        """Take the step that the state table has. Raises: Conflict where it has none."""
        self.become(move(self.life, event), event)

    def become(self, life: Life, event: Event | None = None) -> None:
        """Take this life, to which the event led, and note since when it is ready."""
        self.counts.stepped(self.life.state, event)
        self.life = life
        self._ready_at = None
        if life.state is State.REMOVING:
            self.removed.set()
        if life.state is State.READY:
            self._ready_since, self._ready_at = time.monotonic(), datetime.now(UTC)

    def ready_seconds(self) -> float:
        """How long it has been ready, 0 if it never was in this run; asked once, at its end."""
        since, self._ready_since = self._ready_since, None
        return 0.0 if since is None else time.monotonic() - since

    def interrupt(self) -> None:
        """End the start that is under way, and the pause before the next one: somebody wants it stopped."""
        for scope in (self.starting, self.waiting):
            if scope is not None:
                scope.cancel()

    def know(self) -> None:
        """It is known what runs of it."""
        self.known.set()

    def settle(self) -> None:
        """What ran of it is taken over, or nothing runs."""
        self.known.set()
        self.settled.set()

    def forget_run(self) -> None:
        """The containerd that its run was known from is lost; what runs has to be found out again."""
        self.known, self.settled = anyio.Event(), anyio.Event()

    def view(self) -> PluginView:
        """The plugin at this instant."""
        record = self.record
        run = self.run if self.run is not None and not self.run.ended.is_set() else None
        return PluginView(
            id=record.id,
            name=record.name,
            reference=record.reference,
            enabled=self.is_enabled,
            state=self.state,
            config=self.config,
            settings=self.settings(),
            privileges=self.shown_privileges(),
            ungranted=self._ungranted(),
            restarts=record.restarts,
            last_exit=record.last_exit,
            next_try_at=record.next_try_at if self.state is State.RESTARTING else None,
            ready_at=self._ready_at,
            started_at=run.started_at if run is not None else None,
            pid=run.pid if run is not None else None,
            socket=str(Path(self.places.sockets, self.config.interface.socket)),
            policy=record.policy,
            confinement=self.confinement,
            widenings=widenings(self.confinement),
            holders=self.holders(),
            problem=self.problem,
            warnings=record.warnings,
            digest=record.digest,
            tags=record.tags,
        )

    def holders(self) -> tuple[Holder, ...]:
        """Everybody who says that he uses it."""
        return (*self.record.holders, *(holder for holder, _ in self._attached.values()))

    def attach(self, holder: Holder) -> None:
        """Add a holder that lasts as long as its connection."""
        self._attached[holder.token] = holder, anyio.Event()

    def detach(self, token: str) -> bool:
        """Let such a holder go; whether it was there."""
        was_there = self._attached.pop(token, None) is not None
        self._tell_let_go()
        return was_there

    def detach_all(self) -> None:
        """Nobody holds it any more."""
        self._attached.clear()
        self._tell_let_go()

    def notice(self, token: str) -> anyio.Event | None:
        """What happens when such a holder is asked to let go; None where there is none of this token."""
        found = self._attached.get(token)
        return found[1] if found else None

    async def ask_to_let_go(self, within: float) -> None:
        """Ask everybody who is attached, and wait until all have let go, at most ``within`` seconds."""
        for _, notice in self._attached.values():
            notice.set()
        with anyio.move_on_after(within):
            while self._attached:
                await self._let_go.wait()

    def _tell_let_go(self) -> None:
        # whoever waits holds the event of before: several stops may wait at once
        self._let_go.set()
        self._let_go = anyio.Event()

    def change(self, **fields: object) -> Record:
        """The record with these fields changed; nothing is saved, and nothing changes here."""
        return replace(self.record, **fields)
