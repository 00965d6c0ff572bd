"""What follows from the record of a plugin alone: the settings, privileges and confinement of its next run. Pure.

A list of all plugins needs them of each one, and records seldom change, so they are computed once for each record.
"""

from functools import cached_property

from moorage.engine.values import PluginRecord
from moorage.plugins import (
    Config,
    Confinement,
    Privilege,
    Settings,
    compute_privileges,
    effective_settings,
    find_missing,
    masked,
    resolve_confinement,
    widenings,
)

__all__ = ("EffectiveValues",)


class EffectiveValues:
    """The values of one record, each computed at its first use."""

    def __init__(self, record: PluginRecord, config: Config, defaults: Confinement) -> None:
        """``config`` is that of the record, parsed; ``defaults`` apply where the record has no confinement."""
        self._record, self._config, self._defaults = record, config, defaults

    @cached_property
    def settings(self) -> Settings:
        """Config and overrides together."""
        return effective_settings(self._config, self._record.overrides)

    @cached_property
    def confinement(self) -> Confinement:
        """Every field has a value."""
        return resolve_confinement(self._record.confinement, self._defaults)

    @cached_property
    def widenings(self) -> tuple[Privilege, ...]:
        """What of the confinement gives it more than the default."""
        return widenings(self.confinement)

    @cached_property
    def privileges(self) -> tuple[Privilege, ...]:
        """What it requests with its settings; secret ones are in here."""
        return compute_privileges(self._config, self.settings)

    @cached_property
    def shown_privileges(self) -> tuple[Privilege, ...]:
        """The same in the same order, without secrets."""
        return compute_privileges(self._config, masked(self.settings))

    @cached_property
    def ungranted(self) -> tuple[Privilege, ...]:
        """What of it was not granted, without secrets."""
        if self._record.granted is None:
            return ()
        missing = [id(each) for each in find_missing(self.privileges, self._record.granted)]
        pairs = zip(self.privileges, self.shown_privileges, strict=True)
        return tuple(shown for each, shown in pairs if id(each) in missing)
