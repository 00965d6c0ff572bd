"""What the engine tells of plugins: frozen values, of which the API makes JSON."""

from datetime import datetime

from msgspec import Struct, field
from msgspec.structs import replace

from moorage import errors
from moorage._lib.values import repr_without
from moorage.distribution.hosts import Options
from moorage.engine.lifecycle import DEFAULT_POLICY, RestartPolicy, Restarts, State
from moorage.plugins import BUILT_IN, NO_CONFINEMENT, Config, Confinement, Privilege, Settings, check_confinement

__all__ = ("Answer", "EngineInfo", "Happened", "Holder", "LastExit", "PluginView", "PolicyChange", "Terms")


class LastExit(Struct, frozen=True):
    """How the last run of a plugin ended, or why it could not be started."""

    code: int | None = None
    """Exit status, 128 + n for signal n; None where nobody can know it, or nothing ran."""
    signal: str | None = None
    oom: bool = False
    at: datetime | None = None
    error: str = ""
    """Why it did not start or become ready; empty for a plain end."""


class Holder(Struct, frozen=True):
    """Somebody who uses a plugin. As long as there is one, disable and remove are refused."""

    token: str
    owner: str
    since: datetime


class PluginView(Struct, frozen=True):
    """One plugin at one instant. Secret settings are in here: only ``settings_to_api`` may show ``settings``."""

    id: str
    name: str
    reference: str
    """Where it came from, in full; the local name for one made here."""
    enabled: bool
    """What the user wants."""
    state: State
    config: Config
    settings: Settings
    privileges: tuple[Privilege, ...] = ()
    """What it requests with its settings; secrets are masked."""
    ungranted: tuple[Privilege, ...] = ()
    """What of it was never granted, so that it cannot be enabled."""
    restarts: int = 0
    """Starts that nobody asked for, since the user's last enable."""
    last_exit: LastExit | None = None
    next_try_at: datetime | None = None
    ready_at: datetime | None = None
    """Since when its socket accepts, as this engine saw it; None unless ready."""
    started_at: datetime | None = None
    """When its present process began, whichever engine started it; None where none runs."""
    pid: int | None = None
    socket: str = ""
    """The host's path of its socket, there or not."""
    policy: RestartPolicy = DEFAULT_POLICY
    confinement: Confinement = BUILT_IN
    """Resolved: every field has a value."""
    widenings: tuple[Privilege, ...] = ()
    """What its confinement grants it beyond the default."""
    holders: tuple[Holder, ...] = ()
    problem: str = ""
    """Why it is as it is, where that needs words: what a removal waits for, why a record cannot be used."""
    warnings: tuple[str, ...] = ()
    """What was odd about its config when it was created."""
    digest: str = ""
    """Of the manifest of its package."""
    tags: tuple[str, ...] = ()
    """Its further names."""

    __repr__ = repr_without("settings")


class PolicyChange(Struct, frozen=True):
    """Which lines of a policy to change; None leaves one as it is."""

    restarts: str | None = None
    """always, on-failure or never."""
    most: int | None = None
    """Most restarts in a row; 0 for no limit."""
    stop_timeout: float | None = None
    confinement: Confinement = NO_CONFINEMENT
    """What to change of its confinement."""
    is_attended: bool = False
    """A person agreed to what it widens, so the policy for unattended grants is not asked."""

    def of(self, policy: RestartPolicy) -> RestartPolicy:
        """A policy with this change. Raises: Invalid, also for a confinement that no plugin can have."""
        check_confinement(self.confinement)
        made = policy
        if self.restarts is not None:
            try:
                made = replace(made, restarts=Restarts(self.restarts))
            except ValueError as error:
                names = ", ".join(each.value for each in Restarts)
                raise errors.Invalid(f"cannot restart {self.restarts!r}: it must be one of {names}") from error
        if self.most is not None:
            if self.most < 0:
                raise errors.Invalid(f"cannot restart {self.most} times: it must be 0 (no limit) or more")
            made = replace(made, most=self.most or None)
        if self.stop_timeout is not None:
            if not 0 <= self.stop_timeout <= 3600:
                raise errors.Invalid(f"cannot wait {self.stop_timeout:g} s for a plugin to end: 0 to 3600 are possible")
            made = replace(made, stop_timeout=self.stop_timeout)
        return made


class Happened(Struct, frozen=True):
    """One event, as GET /events tells it: create, pull, enable, disable, upgrade, remove, ready, die, restart, ..."""

    action: str
    id: str
    name: str
    at: datetime
    attributes: dict[str, str] = field(default_factory=dict)
    """More than the name: ``code``, ``oom``, ``signal``, ``seconds``, ..."""
    nanoseconds: int = 0
    """The instant once more, since 1970."""


class Answer(Struct, frozen=True):
    """What a plugin answered to a call."""

    status: int
    body: bytes
    content_type: str


class EngineInfo(Struct, frozen=True):
    """The engine as a whole."""

    root: str
    namespace: str
    containerd: str
    """``private``, ``system`` or an address, as it was chosen at the first start."""
    containerd_address: str
    containerd_version: str
    """Empty while containerd is away."""
    problem: str
    """Why plugins cannot be started or stopped right now; empty when they can."""
    snapshotter: str
    started_at: datetime
    engine_id: str
    """Stays over restarts."""
    live_restore: bool = True
    """Whether plugins go on running when the engine ends, and are taken over by the next one."""
    exec_root: str = ""
    """The directory of its run-time files."""
    notices: tuple[str, ...] = ()
    """What it found at its start and left alone: damaged records, objects in its namespace that are not its own."""
    registries: Options = field(default_factory=Options)
    listeners: int = 0
    """Clients that receive events now."""


class Terms(Struct, frozen=True):
    """On what a user agrees to a package, and how he wants it."""

    granted: tuple[Privilege, ...] | None = ()
    """Exactly what it may ask for; None for whatever it asks."""
    is_attended: bool = False
    """Somebody looked at what is asked for and said yes, so the policy for unattended installs is not asked."""
    assignments: tuple[str, ...] = ()
    """Settings for a new plugin, all or none."""
    secrets: tuple[str, ...] = ()
    once: bool = False
    """A plugin of this name that is from there and has these settings is as good as a new one."""

    __repr__ = repr_without("assignments", "secrets")
