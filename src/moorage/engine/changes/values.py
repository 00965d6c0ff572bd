"""What is requested of a change of a plugin."""

from msgspec import Struct

from moorage._lib.values import repr_without
from moorage.engine.values import PolicyChange, Publication

__all__ = ("ChangeTerms", "PluginChange")


class PluginChange(Struct, frozen=True):
    """What an apply requests of one plugin beside its version; settings that are not named do not change."""

    enabled: bool = True
    assignments: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    policy: PolicyChange | None = None
    published: Publication | bool | None = None
    """How it is published; False for one that is not, None where that does not change."""

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
