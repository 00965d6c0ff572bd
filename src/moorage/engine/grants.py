"""What a plugin may have: what was granted to it, what the policy of the host allows, and changes of both."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from moorage import errors
from moorage._lib.threads import run_blocking
from moorage._lib.time_limit import call_bounded
from moorage.engine.changes.values import PolicyChange
from moorage.engine.lifecycle import State
from moorage.engine.values import PluginRecord
from moorage.host.id_mapping import find_base
from moorage.logs.targets import write_target
from moorage.plugins import (
    NO_CONFINEMENT,
    NO_OVERRIDES,
    Config,
    Confinement,
    MountEntry,
    Overrides,
    Policy,
    Privilege,
    Settings,
    apply_settings,
    check_granted,
    check_policy,
    check_user_namespace,
    compute_privileges,
    effective_settings,
    find_missing,
    find_named,
    masked,
    resources_of,
    widenings,
)
from moorage.runs.devices import resolve_device
from moorage.runs.directories import PluginDirectories
from moorage.runs.pins import pin_sources
from moorage.runs.preparation import make_runtime_directory
from moorage.timeouts import DEFAULT

if TYPE_CHECKING:
    from moorage.engine.runtime import EngineContext
    from moorage.engine.supervisor import Supervisor

__all__ = (
    "GrantPolicy",
    "Grants",
    "PrivilegeRequest",
    "apply_limits",
    "change_policy",
    "change_settings",
    "check_policy_change",
    "grants_of",
    "policy_fields",
    "save_log_target",
)


class Grants(Struct, frozen=True):
    """What a plugin may have, as its record has it."""

    privileges: tuple[Privilege, ...] = ()
    attended: tuple[Privilege, ...] = ()
    """Those of them that a person granted after they were shown; the policy is about the others."""

    def and_also(self, other: "Grants") -> "Grants":
        """What both say."""
        return Grants(
            (*self.privileges, *find_missing(other.privileges, self.privileges)),
            (*self.attended, *find_missing(other.attended, self.attended)),
        )

    def as_fields(self) -> dict[str, object]:
        """Fields of a record or version."""
        return {"granted": self.privileges, "attended": self.attended}


class PrivilegeRequest(Struct, frozen=True):
    """What a plugin requests, or would request."""

    privileges: tuple[Privilege, ...]
    """Secrets are masked."""
    new: tuple[Privilege, ...]
    """What of it was not granted before."""
    refusal: str
    """Why the policy does not let it be granted unattended; empty where it does."""


def grants_of(record: PluginRecord, config: Config) -> Grants:
    """What was granted to a plugin. One of a version that did not record it keeps what it has."""
    if record.granted is None:
        return Grants(compute_privileges(config, effective_settings(config, record.overrides)))
    return Grants(record.granted, record.attended)


_NOTHING = Grants()
_RESPONSE = DEFAULT.path_answer
"""Seconds until the file system of a path must have answered."""


class GrantPolicy:
    """Decides what a plugin may have. Methods that end in ``_now`` resolve paths of the host, and block."""

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
        before: Grants = _NOTHING,
    ) -> Grants:
        """What a plugin has that gets this config and these settings, on these terms (None: whatever it requests).

        Terms are exact: what it requests with its settings, or, as Docker's clients know nothing else, what the config
        requests by itself; then the rest must have been granted ``before``, or be what the caller ``named`` in the same
        call. Raises: Denied naming the difference.
        """
        settings = effective_settings(config, overrides)
        requested, shown = compute_privileges(config, settings), compute_privileges(config, masked(settings))
        if terms is not None and not _are_same(requested, terms) and not _are_same(shown, terms):
            more = (*before.privileges, *find_named(config, named))
            if not _are_same(compute_privileges(config), terms) or find_missing(requested, (*terms, *more)):
                check_granted(shown, terms)
        known = [each.key for each in before.attended]
        attended = [each for each in requested if each.key in known]
        if is_attended:
            attended += find_missing(find_missing(requested, before.privileges), attended)
        return Grants(requested, tuple(attended))

    def widen(self, config: Config, overrides: Overrides, named: Overrides, before: Grants) -> Grants:
        """What a plugin has after a ``set`` that ``named`` these: a path that its operator names is granted by that."""
        requested = compute_privileges(config, effective_settings(config, overrides))
        keys = {each.key for each in requested}
        still_granted = [each for each in before.privileges if each.key in keys or each.name == "file system"]
        missing = {each.key for each in find_missing(requested, still_granted)}
        added = [each for each in find_named(config, named) if each.key in missing]
        return Grants((*still_granted, *added), before.attended)

    def request_now(self, config: Config, overrides: Overrides, before: Grants) -> PrivilegeRequest:
        """What a plugin with this config and these settings requests."""
        settings = effective_settings(config, overrides)
        requested, shown = compute_privileges(config, settings), compute_privileges(config, masked(settings))
        missing = [id(each) for each in find_missing(requested, before.privileges)]
        new = tuple(show for each, show in zip(requested, shown, strict=True) if id(each) in missing)
        refusal = ""
        try:
            self.check_policy_now(config, overrides, before.attended)
        except errors.Denied as error:
            refusal = str(error)
        return PrivilegeRequest(shown, new, refusal)

    def check_granted(self, name: str, record: PluginRecord, config: Config) -> None:
        """Whether a plugin was granted all that it requests now. Raises: Denied naming what was not."""
        if record.granted is None:
            return
        requested = compute_privileges(config, effective_settings(config, record.overrides))
        if missing := find_missing(requested, record.granted):
            raise errors.Denied(
                f"plugin {name} was never granted {', '.join(map(str, missing))}; "
                f"moorage enable {name} shows it and asks"
            )

    def check_policy_now(self, config: Config, overrides: Overrides, attended: Sequence[Privilege]) -> None:
        """Whether the host's policy allows what no person granted. Raises: Denied."""
        if self.policy is not None:
            settings = effective_settings(config, overrides)
            check_policy(self.policy, config, settings, attended=attended, resolve=_real_path)

    def check_now(self, plugin_name: str, record: PluginRecord, config: Config) -> None:
        """Whether a plugin may be started as it is. Raises: Denied."""
        self.check_granted(plugin_name, record, config)
        self.check_policy_now(config, record.overrides, record.attended)

    def check_widenings(self, requested: Sequence[Privilege], attended: Sequence[Privilege]) -> None:
        """Whether the host's policy allows what widens a confinement and no person granted. Raises: Denied."""
        policy = self.policy
        if policy is None:
            return
        refused = [
            str(each)
            for each in find_missing(requested, attended)
            if not all(policy.allows_widening(each.name, value) for value in each.value)
        ]
        if refused:
            raise errors.Denied(f"cannot grant unattended: this host's policy does not allow {', '.join(refused)}")

    def prepare_now(
        self, plugin_name: str, record: PluginRecord, config: Config, directories: PluginDirectories
    ) -> Settings:
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

        make_runtime_directory(directories).close()
        return pin_sources(settings, directories.pins, check)

    def check_devices_now(self, record: PluginRecord, settings: Settings, spec: Mapping[str, Any]) -> None:
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


async def change_settings(
    context: "EngineContext", plugin: "Supervisor", assignments: Sequence[str], secrets: Sequence[str]
) -> None:
    """Change settings of a plugin, all or none.

    Raises: Conflict while it is enabled; Invalid; Denied for what the host's policy is against.
    """
    consent = context.consent

    async def job() -> None:
        record, config = plugin.record, plugin.config
        if record.enabled or plugin.state is not State.DISABLED:
            raise errors.Conflict("cannot set on an active plugin, disable plugin before setting")
        made = apply_settings(config, record.overrides, assignments, secrets=secrets)
        named = apply_settings(config, NO_OVERRIDES, assignments, secrets=secrets)
        granted = consent.widen(config, made, named, grants_of(record, config))
        await run_blocking(lambda: consent.check_policy_now(config, made, granted.attended))
        await plugin.save(overrides=made, **granted.as_fields())

    await plugin.inbox.do(job)


def _check_health(plugin: "Supervisor", config: Config, change: PolicyChange) -> None:
    """Raises: Invalid for health checks that a plugin with this config cannot have."""
    interface = config.interface
    if any(each.kind == "call" for each in change.of_health(plugin.record.health).checks) and not interface.is_http:
        scheme = interface.protocol_scheme
        raise errors.Invalid(f"cannot check the health of plugin {plugin.name} by a call: it speaks {scheme}, not HTTP")


def check_policy_change(
    context: "EngineContext", plugin: "Supervisor", change: PolicyChange, config: Config, settings: Settings
) -> None:
    """Whether a plugin with this config and these settings may get this policy.

    Raises: Invalid for a value, or for a user namespace that it cannot have; Denied for what the host does not grant.
    """
    change.of(plugin.record.policy)
    _check_health(plugin, config, change)
    _attended(context.consent, plugin, change)
    if change.confinement.userns == "auto":
        check_user_namespace(config, settings)


def policy_fields(context: "EngineContext", plugin: "Supervisor", change: PolicyChange) -> dict[str, object]:
    """The fields of its record with this change, which was checked. Raises: Invalid; Denied."""
    confinement = plugin.record.confinement.updated(change.confinement)
    id_base = plugin.record.id_base
    if confinement.userns == "auto" and not id_base:
        taken = frozenset(each.record.id_base for each in context.plugins.all())
        id_base = find_base(taken, int(plugin.id[:8], 16))
    return {
        "policy": change.of(plugin.record.policy),
        "health": change.of_health(plugin.record.health),
        "attended_widenings": _attended(context.consent, plugin, change),
        "confinement": confinement,
        "id_base": id_base,
    }


async def change_policy(context: "EngineContext", plugin: "Supervisor", change: PolicyChange) -> None:
    """Change the policy of a plugin.

    Limits of memory, processors and processes are those of the running plugin at once; the rest is of its next start.

    Raises: Invalid for a value, or for a user namespace that the plugin cannot have; Denied for what it widens and this
    host does not grant; Unavailable where the change is not saved; MoorageError where it is saved, but not applied to
    what runs.
    """
    check_policy_change(context, plugin, change, plugin.config, plugin.settings)

    async def job() -> None:
        await plugin.save(**policy_fields(context, plugin, change))
        if change.health:
            plugin.health.follow()
        await apply_limits(context, plugin, change.confinement)
        if change.standby is not None or change.confinement != NO_CONFINEMENT:
            await plugin.standby.renew()
        if change.log is not None:
            await save_log_target(plugin)

    await plugin.inbox.do(job)


async def save_log_target(plugin: "Supervisor") -> None:
    """Let the log keeper send its lines where its policy says, under its present name. Raises: Unavailable."""
    directory, record = str(plugin.log.directory), plugin.record
    try:
        await run_blocking(lambda: write_target(directory, record.policy.log, record.name, record.id))
    except OSError as error:
        raise errors.Unavailable(f"cannot change the log of plugin {record.name}: {error.strerror}") from error


def _attended(consent: GrantPolicy, plugin: "Supervisor", change: PolicyChange) -> tuple[Privilege, ...]:
    """What of the changed confinement a person granted. Raises: Denied for what is new and not granted by the host."""
    before, after = widenings(plugin.confinement), widenings(plugin.confinement.updated(change.confinement))
    new = find_missing(after, before)
    if not change.is_attended:
        consent.check_widenings(new, ())
    granted = (*plugin.record.attended_widenings, *(new if change.is_attended else ()))
    keys = [each.key for each in granted]
    return tuple(each for each in after if each.key in keys)


async def apply_limits(context: "EngineContext", plugin: "Supervisor", change: Confinement) -> None:
    """Give what runs of a plugin the limits of this change. Raises: MoorageError where that fails."""
    resources = resources_of(plugin.confinement, change)
    run = plugin.run
    if not resources or run is None or run.finished.is_set():
        return
    try:
        await context.availability.require().client.update_task(run.container, resources)
    except errors.NotFound:
        return  # it exited meanwhile; the next run has the new limits
    except errors.MoorageError as error:
        raise errors.MoorageError(
            f"cannot change the limits of plugin {plugin.name} while it runs: {error}; they are saved, "
            "and apply from its next start on"
        ) from error


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
