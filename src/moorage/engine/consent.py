"""What a plugin may have: what was granted to it, and what the policy of the host allows, checked before each use."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from moorage import errors
from moorage._lib.bounded import call_bounded
from moorage.engine.devices import resolve_device
from moorage.engine.places import PluginPlaces
from moorage.engine.store import Record
from moorage.plugins import (
    NO_OVERRIDES,
    Config,
    MountEntry,
    Overrides,
    Policy,
    Privilege,
    Settings,
    check_granted,
    check_policy,
    compute_privileges,
    effective_settings,
    find_missing,
    find_named,
    masked,
)

__all__ = ("Consent", "Granted", "Request", "granted_of")


class Granted(Struct, frozen=True):
    """What a plugin may have, as its record has it."""

    privileges: tuple[Privilege, ...] = ()
    attended: tuple[Privilege, ...] = ()
    """Those of them that a person granted after they were shown; the policy is about the others."""

    def and_also(self, other: "Granted") -> "Granted":
        """What both say."""
        return Granted(
            (*self.privileges, *find_missing(other.privileges, self.privileges)),
            (*self.attended, *find_missing(other.attended, self.attended)),
        )

    def as_fields(self) -> dict[str, object]:
        """Fields of a record or version."""
        return {"granted": self.privileges, "attended": self.attended}


class Request(Struct, frozen=True):
    """What a plugin requests, or would request."""

    privileges: tuple[Privilege, ...]
    """Secrets are masked."""
    new: tuple[Privilege, ...]
    """What of it was not granted before."""
    refusal: str
    """Why the policy does not let it be granted unattended; empty where it does."""


def granted_of(record: Record, config: Config) -> Granted:
    """What was granted to a plugin. One of a version that did not record it keeps what it has."""
    if record.granted is None:
        return Granted(compute_privileges(config, effective_settings(config, record.overrides)))
    return Granted(record.granted, record.attended)


_NOTHING = Granted()
_RESPONSE = 5.0
"""Seconds until the file system of a path must have answered."""


class Consent:
    """Decides what a plugin may have. Methods that end in ``_now`` look at paths of the host, and block."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy

    def agree(
        self,
        config: Config,
        overrides: Overrides,
        terms: Sequence[Privilege] | None,
        *,
        is_attended: bool = False,
        named: Overrides = NO_OVERRIDES,
        before: Granted = _NOTHING,
    ) -> Granted:
        """What a plugin has that gets this config and these settings, on these terms (None: whatever it requests).

        Terms are exact: what it requests with its settings, or, as Docker's clients know nothing else, what the config
        requests by itself; then the rest must have been granted ``before``, or be what the caller ``named`` in the same
        call. Raises: Denied naming the difference.
        """
        settings = effective_settings(config, overrides)
        wanted, shown = compute_privileges(config, settings), compute_privileges(config, masked(settings))
        if terms is not None and not _are_same(wanted, terms) and not _are_same(shown, terms):
            more = (*before.privileges, *find_named(config, named))
            if not _are_same(compute_privileges(config), terms) or find_missing(wanted, (*terms, *more)):
                check_granted(shown, terms)
        known = [each.key for each in before.attended]
        attended = [each for each in wanted if each.key in known]
        if is_attended:
            attended += find_missing(find_missing(wanted, before.privileges), attended)
        return Granted(wanted, tuple(attended))

    def widen(self, config: Config, overrides: Overrides, named: Overrides, before: Granted) -> Granted:
        """What a plugin has after a ``set`` that ``named`` these: a path that its operator names is granted by that."""
        wanted = compute_privileges(config, effective_settings(config, overrides))
        keys = {each.key for each in wanted}
        kept = [each for each in before.privileges if each.key in keys or each.name == "file system"]
        missing = {each.key for each in find_missing(wanted, kept)}
        added = [each for each in find_named(config, named) if each.key in missing]
        return Granted((*kept, *added), before.attended)

    def request_now(self, config: Config, overrides: Overrides, before: Granted) -> Request:
        """What a plugin with this config and these settings requests."""
        settings = effective_settings(config, overrides)
        wanted, shown = compute_privileges(config, settings), compute_privileges(config, masked(settings))
        missing = [id(each) for each in find_missing(wanted, before.privileges)]
        new = tuple(show for each, show in zip(wanted, shown, strict=True) if id(each) in missing)
        refusal = ""
        try:
            self.check_policy_now(config, overrides, before.attended)
        except errors.Denied as error:
            refusal = str(error)
        return Request(shown, new, refusal)

    def check_granted(self, name: str, record: Record, config: Config) -> None:
        """Whether a plugin was granted all that it requests now. Raises: Denied naming what was not."""
        if record.granted is None:
            return
        wanted = compute_privileges(config, effective_settings(config, record.overrides))
        if missing := find_missing(wanted, record.granted):
            raise errors.Denied(
                f"plugin {name} was never granted {', '.join(map(str, missing))}; "
                f"moorage enable {name} shows it and asks"
            )

    def check_policy_now(self, config: Config, overrides: Overrides, attended: Sequence[Privilege]) -> None:
        """Whether the host's policy allows what no person granted. Raises: Denied."""
        if self.policy is not None:
            settings = effective_settings(config, overrides)
            check_policy(self.policy, config, settings, attended=attended, resolve=_real_path)

    def check_now(self, plugin_name: str, record: Record, config: Config) -> None:
        """Whether a plugin may be started as it is. Raises: Denied."""
        self.check_granted(plugin_name, record, config)
        self.check_policy_now(config, record.overrides, record.attended)

    def check_widenings(self, wanted: Sequence[Privilege], attended: Sequence[Privilege]) -> None:
        """Whether the host's policy allows what widens a confinement and no person granted. Raises: Denied."""
        policy = self.policy
        if policy is None:
            return
        refused = [
            str(each)
            for each in find_missing(wanted, attended)
            if not all(policy.allows_widening(each.name, value) for value in each.value)
        ]
        if refused:
            raise errors.Denied(f"cannot grant unattended: this host's policy does not allow {', '.join(refused)}")

    def prepare_now(self, plugin_name: str, record: Record, config: Config, places: PluginPlaces) -> Settings:
        """The settings for a run, checked; under a policy every source is pinned, and that is what was checked.

        Raises: Denied; Unavailable.
        """
        settings = effective_settings(config, record.overrides)
        self.check_now(plugin_name, record, config)
        policy = self.policy
        if policy is None:
            return settings
        attended = {each.key for each in record.attended}

        def check(mount: MountEntry, real: str) -> bool:
            return _check_bind(policy, config, settings, mount, real, attended)

        return places.pin_sources(settings, check)

    def check_devices_now(self, record: Record, settings: Settings, spec: Mapping[str, Any]) -> None:
        """Whether the devices in a spec are those that the policy allows. Raises: Denied where one was exchanged."""
        if self.policy is None:
            return
        attended = {each.key for each in record.attended}
        nodes = spec["linux"].get("devices", ())
        for device in settings.devices:
            path = device.path
            if not path or ("device", (path,)) in attended:
                continue
            real = _real_path(path)
            allowed = {(each.type, each.major, each.minor) for each in resolve_device(real)}
            given = {
                (each["type"], each["major"], each["minor"])
                for each in nodes
                if each["path"] == path or each["path"].startswith(f"{path.rstrip('/')}/")
            }
            if not self.policy.allows_device(real) or not given <= allowed:
                raise errors.Denied(f"cannot grant unattended: this host's policy does not allow device {real}")


def _are_same(one: Sequence[Privilege], other: Sequence[Privilege]) -> bool:
    return not find_missing(one, other) and not find_missing(other, one)


def _real_path(path: str) -> str:
    """Raises: Unavailable where the file system of a path does not answer."""
    return call_bounded(lambda: os.path.realpath(path), _RESPONSE, f"resolve {path}", owner=path)


def _check_bind(
    policy: Policy,
    config: Config,
    settings: Settings,
    mount: MountEntry,
    real: str,
    attended: set[tuple[str, tuple[str, ...]]],
) -> bool:
    """Check the one mount on its real path; whether what is mounted below it may be shown, too."""
    alone = Settings(mounts=(mount,))
    described = [each for each in compute_privileges(config, alone) if each.name == "bind mount"]
    if all(each.key in attended for each in described):
        return True
    if not policy.allows_bind(real, is_read_only=mount.is_read_only):
        named = ", ".join(map(str, described))
        raise errors.Denied(f"cannot grant unattended: this host's policy does not allow {named}, which is {real}")
    # read-only ends at the top of a mount: what is mounted below it would be writable
    return policy.allows_bind(real, is_read_only=False)
