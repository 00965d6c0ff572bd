"""The plan of a run of an installed plugin: whether it may have what it requests is checked each time."""

from typing import TYPE_CHECKING

from moorage._lib.threads import run_blocking
from moorage.plugins import widenings
from moorage.runs.plan import PlanOptions, RunPlan, build_plan

if TYPE_CHECKING:
    from moorage.engine.grants import GrantPolicy
    from moorage.engine.plugin import PluginState

__all__ = ("plan_run",)


async def plan_run(plugin: "PluginState", consent: "GrantPolicy", options: PlanOptions) -> RunPlan:
    """What a container that is created now gets; under a policy its mount sources are pinned until they are released.

    Raises: Invalid for what this host lacks, Denied for what was not granted, Unavailable for what does not answer.
    """
    config, directories = plugin.config, plugin.directories
    consent.check_widenings(widenings(plugin.confinement), plugin.record.attended_widenings)
    record = plugin.record

    def plan_now() -> RunPlan:
        settings = consent.prepare_now(plugin.name, record, config, directories)
        plan = build_plan(directories, config, settings, options)
        consent.check_devices_now(record, settings, plan.spec)
        return plan

    return await run_blocking(plan_now)
