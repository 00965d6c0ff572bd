"""The engine's values as objects of the API. Secrets are masked; times are RFC 3339; durations are seconds."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict

from moorage import errors
from moorage._version import __version__
from moorage.api.schema import consumers, output, packages, plugins, system
from moorage.api.schema.base import API_VERSION, MIN_API_VERSION, from_document
from moorage.engine.changes.values import PluginChange, PolicyChange
from moorage.engine.consumers.names import is_kind
from moorage.engine.consumers.volumes import VolumeView
from moorage.engine.transfers import LoadResult
from moorage.engine.values import EngineInfo, Holder, LastExit, PluginEvent, PluginView, Publication
from moorage.health.model import HealthCheck, HealthPolicy, HealthResult, HealthState
from moorage.host.cgroup_usage import CgroupUsage, ProcessView
from moorage.logs.lines import Line
from moorage.oci.platforms import architecture_of_machine
from moorage.packages.usage import DiskUsage, Pruned
from moorage.plugins import Confinement, Privilege, config_to_api, settings_to_api
from moorage.proxy.protocol import PublishOptions, VolumeMount
from moorage.runs.plan import LOG_DIRECTORY

__all__ = (
    "to_confinement",
    "to_desired",
    "to_disk_usage",
    "to_event",
    "to_health_change",
    "to_holder",
    "to_loaded_plugin",
    "to_log_line",
    "to_mount",
    "to_plugin",
    "to_policy",
    "to_policy_change",
    "to_privileges",
    "to_process",
    "to_prune_report",
    "to_publication",
    "to_publish_options",
    "to_stats",
    "to_time",
    "to_version",
    "to_volume",
)

_MOST_RESTARTS = 1_000_000_000


def to_plugin(view: PluginView, processes: Sequence[ProcessView] | None = None) -> plugins.PluginDetails:
    """A plugin, with its processes if they are given."""
    return plugins.PluginDetails(
        config=from_document(config_to_api(view.config), plugins.PluginConfig),
        enabled=view.enabled,
        id=view.id,
        name=view.name,
        plugin_reference=view.reference or UNSET,
        settings=from_document(settings_to_api(view.settings), plugins.PluginSettings),
        moorage=plugins.PluginExtension(
            state=view.state.value,
            restarts=view.restarts,
            last_exit=_to_last_exit(view.last_exit) if view.last_exit else None,
            next_try_at=to_time(view.next_try_at),
            ready_at=to_time(view.ready_at),
            started_at=to_time(view.started_at),
            uptime_seconds=_seconds_since(view.started_at),
            pid=view.pid,
            control_group=view.control_group,
            runtime=view.runtime,
            standby_pid=view.standby_pid,
            socket=view.socket,
            policy=to_policy(view),
            health=_to_health(view.health) if view.health else None,
            holders=[to_holder(holder) for holder in view.holders],
            privileges=to_privileges(view.privileges),
            widenings=to_privileges(view.widenings),
            ungranted=to_privileges(view.ungranted),
            problem=view.problem,
            warnings=list(view.warnings),
            digest=view.digest,
            tags=list(view.tags),
            processes=UNSET if processes is None else [to_process(each) for each in processes],
            published=to_publication(view.published) if view.published else None,
            log_directory=LOG_DIRECTORY if view.published and is_kind(view.config, "logdriver") else "",
            mounts=[to_mount(each) for each in view.mounts],
            applied_by=view.applied_by,
            labels=dict(view.labels),
        ),
    )


def to_privileges(privileges: Sequence[Privilege]) -> list[plugins.PluginPrivilege]:
    """Privileges in their order."""
    return [plugins.PluginPrivilege(each.name, each.description, list(each.value)) for each in privileges]


def to_policy(view: PluginView) -> plugins.PluginPolicy:
    """The policy of a plugin, with its resolved confinement."""
    policy = view.policy
    fields: dict[str, Any] = asdict(view.confinement)  # resolved, so none of them is None
    return plugins.PluginPolicy(
        restarts=policy.restarts.value,
        most=policy.most,
        stop_timeout=policy.stop_timeout,
        log=policy.log,
        standby=policy.standby,
        health=_to_health_policy(view.health_policy),
        **fields,
    )


def _to_health_policy(policy: HealthPolicy) -> plugins.PluginHealthPolicy:
    fields = asdict(policy)
    fields["checks"] = [
        plugins.PluginHealthCheck(kind=each.kind, method=each.method, command=list(each.command))
        for each in policy.checks
    ]
    return plugins.PluginHealthPolicy(**fields)


def _to_health(state: HealthState) -> plugins.HealthReport:
    def line(result: HealthResult) -> plugins.PluginHealthResult:
        end = result.at + timedelta(seconds=result.seconds)
        return plugins.PluginHealthResult(
            result.at.isoformat(), end.isoformat(), 0 if result.is_passed else 1, result.text
        )

    return plugins.HealthReport(state.status.value, state.failures, [line(each) for each in state.results])


def to_health_change(request: plugins.PolicyRequest) -> dict[str, object]:
    """The fields of a health policy that a policy request sets."""
    if request.health is UNSET:
        return {}
    found = {name: value for name, value in asdict(request.health).items() if value is not UNSET}
    if request.health.checks is not UNSET:
        found["checks"] = tuple(
            HealthCheck(each.kind, each.method, tuple(each.command)) for each in request.health.checks
        )
    return found


def to_policy_change(request: plugins.PolicyRequest) -> PolicyChange:
    """The change that a policy request is. Raises: Invalid."""
    if not -_MOST_RESTARTS <= (request.most or 0) <= _MOST_RESTARTS:
        raise errors.Invalid(f"cannot restart {request.most} times: at most {_MOST_RESTARTS}; 0 means no limit")
    return PolicyChange(
        restarts=None if request.restarts is UNSET else request.restarts,
        most=None if request.most is UNSET else request.most,
        stop_timeout=None if request.stop_timeout is UNSET else request.stop_timeout,
        health=to_health_change(request),
        log=None if request.log is UNSET else request.log,
        standby=None if request.standby is UNSET else request.standby,
        confinement=to_confinement(request),
        is_attended=bool(request.attended),
    )


def to_confinement(request: plugins.PolicyRequest) -> Confinement:
    """The confinement that a policy request sets.

    Raises:
        errors.Invalid: a field has a value that no confinement has
    """
    fields = {name: value for name, value in asdict(request).items() if name in Confinement.__struct_fields__}
    try:
        return msgspec.convert({name: value for name, value in fields.items() if value is not UNSET}, Confinement)
    except msgspec.ValidationError as error:
        raise errors.Invalid(f"invalid JSON: {error}") from error


def to_holder(holder: Holder) -> plugins.PluginHolder:
    """A holder, with the token that releases the plugin."""
    return plugins.PluginHolder(holder.token, holder.owner, holder.since.isoformat())


def to_publication(publication: Publication) -> consumers.PluginPublication:
    """How consumers reach a plugin."""
    options = publication.options
    return consumers.PluginPublication(
        names=list(publication.names),
        group=publication.group,
        mode=f"{publication.mode:04o}",
        while_disabled=options.while_disabled,
        while_unhealthy=options.while_unhealthy,
        replay=options.replays,
        at_once=options.at_once,
        time_limits=dict(options.time_limits),
        podman=publication.podman,
    )


def to_publish_options(request: consumers.PublishRequest) -> PublishOptions:
    """The options of a request; those that are absent have their defaults."""
    fields = {
        "while_disabled": request.while_disabled,
        "while_unhealthy": request.while_unhealthy,
        "replays": request.replay,
        "at_once": request.at_once,
        "time_limits": request.time_limits,
    }
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not UNSET}
    return PublishOptions(**given)


def to_desired(request: packages.ApplyRequest) -> PluginChange:
    """The desired state that an apply requests. Raises: Invalid."""
    publish: Publication | bool | None = None
    if isinstance(request.publish, consumers.PublishRequest):
        podman = None if request.publish.podman is UNSET else request.publish.podman
        options = to_publish_options(request.publish)
        publish = Publication(
            tuple(request.publish.names or ()), request.publish.group or "", options=options, podman=podman
        )
    elif request.publish is False:
        publish = False
    return PluginChange(
        enabled=request.enabled is not False,
        assignments=tuple(request.settings or ()),
        secrets=tuple(request.secrets or ()),
        policy=None if request.policy is UNSET else to_policy_change(request.policy),
        published=publish,
        labels=None if request.labels is UNSET else request.labels,
        applied_by=(request.applied_by or "") if request.adopt is True else None,
    )


def to_mount(mount: VolumeMount) -> consumers.PluginMountUse:
    """A mount that a consumer has not released."""
    return consumers.PluginMountUse(
        volume=mount.volume,
        id=mount.id,
        path=mount.path,
        consumer=mount.consumer,
        since=mount.since.isoformat(),
        problem=mount.problem,
        stale=mount.is_stale,
    )


def to_volume(volume: VolumeView) -> consumers.VolumeDetails:
    """A volume with its users."""
    return consumers.VolumeDetails(
        name=volume.name,
        driver=volume.driver,
        mountpoint=volume.mountpoint,
        created_at=volume.created_at,
        scope=volume.scope,
        status=dict(volume.status),
        options=dict(volume.options),
        mounts=[to_mount(each) for each in volume.mounts],
    )


def to_event(event: PluginEvent) -> system.EventMessage:
    """An event as GET /events reports it."""
    return system.EventMessage(
        type="plugin",
        action=event.action,
        actor=system.EventActor(event.id, {"name": event.name, **event.attributes}),
        scope="local",
        time=event.nanoseconds // 10**9,
        time_nano=event.nanoseconds,
    )


def to_stats(view: PluginView, usage: CgroupUsage) -> output.PluginStats:
    """The resource usage of a plugin; None is what this host does not count."""
    return output.PluginStats(
        id=view.id,
        name=view.name,
        at=usage.at.isoformat(),
        cpu_seconds=usage.cpu_seconds,
        memory_bytes=usage.memory_bytes,
        memory_limit_bytes=usage.memory_limit_bytes,
        oom_kills=usage.oom_kills,
        pids=usage.pids,
        pids_limit=usage.pids_limit,
        cpus_limit=usage.cpus_limit,
        zombies=usage.zombies,
        read_bytes=usage.read_bytes,
        written_bytes=usage.written_bytes,
        standby_memory_bytes=usage.standby_memory_bytes,
    )


def to_process(process: ProcessView) -> plugins.PluginProcess:
    """A process, by the pids of the host."""
    return plugins.PluginProcess(
        pid=process.pid,
        parent=process.parent,
        state=process.state,
        command=process.command,
        memory_bytes=process.memory_bytes,
        cpu_seconds=process.cpu_seconds,
        threads=process.threads,
        started_at=to_time(process.started_at),
        apparmor=process.apparmor,
    )


def to_disk_usage(usage: DiskUsage) -> system.DiskUsageReport:
    """What everything occupies, in bytes."""
    return system.DiskUsageReport(
        plugins=[system.PluginDiskUsage(**asdict(each)) for each in usage.plugins],
        content_bytes=usage.content_bytes,
        layers_bytes=usage.layers_bytes,
        written_bytes=usage.written_bytes,
        uploads=usage.uploads,
        uploads_bytes=usage.uploads_bytes,
        unreferenced_bytes=usage.unreferenced_bytes,
    )


def to_prune_report(pruned: Pruned) -> system.PruneReport:
    """What a prune removed."""
    return system.PruneReport(pruned.freed_bytes, pruned.uploads, pruned.under_way)


def to_loaded_plugin(loaded: LoadResult) -> packages.LoadedPlugin:
    """A plugin of an archive."""
    view = loaded.plugin
    return packages.LoadedPlugin(
        id=view.id,
        name=view.name,
        digest=view.digest,
        new=loaded.is_new,
        privileges=to_privileges(view.privileges),
        ungranted=to_privileges(view.ungranted),
        warnings=list(view.warnings),
    )


def to_log_line(line: Line) -> output.LogLine:
    """A line of output."""
    return output.LogLine(line.at.isoformat(), line.stream, line.text, line.partial or UNSET)


def to_version(info: EngineInfo) -> system.SystemVersion:
    """What ``docker version`` shows of its server."""
    api_version, min_api_version, arch, kernel = (
        _dotted(API_VERSION),
        _dotted(MIN_API_VERSION),
        architecture_of_machine(platform.machine()),
        platform.release(),
    )
    engine = system.ComponentDetails(
        api_version=api_version,
        min_api_version=min_api_version,
        os="linux",
        arch=arch,
        kernel_version=kernel,
        experimental="false",
    )
    components = [system.ComponentVersion("Engine", __version__, engine)]
    if info.containerd_version:
        components.append(system.ComponentVersion("containerd", info.containerd_version, system.ComponentDetails()))
    return system.SystemVersion(
        platform=system.NamedPlatform("Moorage"),
        components=components,
        version=__version__,
        api_version=api_version,
        min_api_version=min_api_version,
        os="linux",
        arch=arch,
        kernel_version=kernel,
        git_commit="",
        go_version="",
        build_time="",
    )


def to_time(at: datetime | None) -> str | None:
    """RFC 3339; None for None."""
    return at.isoformat() if at is not None else None


def _to_last_exit(last: LastExit) -> plugins.PluginLastExit:
    return plugins.PluginLastExit(last.code, last.signal, last.oom, to_time(last.at), last.error)


def _seconds_since(at: datetime | None) -> float | None:
    # never below 0: the clock may have been set back
    return None if at is None else max(0.0, round((datetime.now(UTC) - at).total_seconds(), 3))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
