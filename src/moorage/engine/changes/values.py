"""What is requested of a change of a plugin."""

from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from moorage import errors
from moorage._lib.values import repr_without
from moorage.engine.lifecycle import RestartPolicy, Restarts
from moorage.engine.values import Publication
from moorage.health.model import HealthPolicy, check_health_policy
from moorage.plugins import NO_CONFINEMENT, Confinement, check_confinement

__all__ = ("ChangeTerms", "PluginChange", "PolicyChange")

LOG_TARGETS = ("file", "journald", "syslog")
"""Where the output of a plugin may go; its files have it in any case."""


class PolicyChange(Struct, frozen=True):
    """Which lines of a policy to change; None leaves one as it is."""

    restarts: str | None = None
    """always, on-failure or never."""
    most: int | None = None
    """Most restarts in a row; 0 for no limit."""
    stop_timeout: float | None = None
    health: Mapping[str, object] = field(default_factory=dict)
    """Fields of its ``HealthPolicy`` to change."""
    log: str | None = None
    """file, journald or syslog."""
    standby: bool | None = None
    """Whether its next run is prepared while the present one runs."""
    confinement: Confinement = NO_CONFINEMENT
    """What to change of its confinement."""
    is_attended: bool = False
    """A person agreed to what it widens, so the policy for unattended grants does not apply."""

    def of_health(self, policy: HealthPolicy) -> HealthPolicy:
        """The health checks with this change. Raises: Invalid."""
        made = replace(policy, **self.health)
        check_health_policy(made)
        return made

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
        if self.log is not None:
            if self.log not in LOG_TARGETS:
                raise errors.Invalid(f"cannot log to {self.log!r}: it must be one of {', '.join(LOG_TARGETS)}")
            made = replace(made, log=self.log)
        if self.standby is not None:
            made = replace(made, standby=self.standby)
        return made


class PluginChange(Struct, frozen=True):
    """What an apply requests of one plugin beside its version; settings that are not named do not change."""

    enabled: bool = True
    assignments: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    policy: PolicyChange | None = None
    published: Publication | bool | None = None
    """How it is published; False for one that is not, None where that does not change."""
    labels: Mapping[str, str] | None = None
    """All its labels; None where they do not change."""
    applied_by: str | None = None
    """Identity of the file that adopts it; None where that does not change."""

    __repr__ = repr_without("assignments", "secrets")


class ChangeTerms(Struct, frozen=True):
    """Under which conditions a plugin gets another version."""

    restart: bool = False
    """Also one that is enabled: it is stopped, changed and started."""
    force: bool = False
    """Also one that is in use."""
    wait: float = 0
    """Seconds until what is new must be healthy, or what was before is started again; 0 to go by ready alone."""
    desired: PluginChange | None = None
    """What is changed together with the version."""
