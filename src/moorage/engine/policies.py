"""Restart policies as users change them."""

from dataclasses import replace

from moorage import errors
from moorage.engine.lifecycle import RestartPolicy, Restarts
from moorage.engine.values import PolicyChange

__all__ = ("changed_policy",)


def changed_policy(policy: RestartPolicy, change: PolicyChange) -> RestartPolicy:
    """The policy with what is given changed. Raises: Invalid."""
    made = policy
    if change.restarts is not None:
        try:
            made = replace(made, restarts=Restarts(change.restarts))
        except ValueError as error:
            names = ", ".join(each.value for each in Restarts)
            raise errors.Invalid(f"cannot restart {change.restarts!r}: it must be one of {names}") from error
    if change.most is not None:
        if change.most < 0:
            raise errors.Invalid(f"cannot restart {change.most} times: it must be 0 (no limit) or more")
        made = replace(made, most=change.most or None)
    if change.stop_timeout is not None:
        if not 0 <= change.stop_timeout <= 3600:
            raise errors.Invalid(f"cannot wait {change.stop_timeout:g} s for a plugin to end: 0 to 3600 are possible")
        made = replace(made, stop_timeout=change.stop_timeout)
    return made
