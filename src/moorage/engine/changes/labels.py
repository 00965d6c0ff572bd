"""Changes of the labels of a plugin: a job of its inbox, which neither stops nor starts anything."""

from collections.abc import Mapping, Sequence

from moorage.engine.supervisor import Supervisor
from moorage.plugins import check_labels

__all__ = ("change_labels",)


async def change_labels(plugin: Supervisor, added: Mapping[str, str], removed: Sequence[str]) -> None:
    """Remove labels by key, those that it does not have included, then add others or replace their values.

    Raises: Invalid for labels that no plugin can have; Unavailable where the change is not saved. Then nothing changes.
    """

    async def job() -> None:
        others = {key: value for key, value in plugin.record.labels.items() if key not in removed}
        labels = {**others, **added}
        check_labels(labels)
        await plugin.save(labels=labels)

    await plugin.inbox.do(job)
