"""Every bound on waiting: float seconds, a class for each room. A constructor takes the class of its room.

``Timeouts`` has the bounds of all rooms, so it may be given wherever one of the others is expected.
"""

import dataclasses
from typing import TYPE_CHECKING

__all__ = (
    "DEFAULT", "ApiTimeouts", "ClientTimeouts", "CommandTimeouts", "EmbeddedTimeouts", "EngineTimeouts",
    "ExecutorTimeouts", "HostTimeouts", "KeeperTimeouts", "PackageTimeouts", "PageTimeouts", "ProxyTimeouts",
    "RegistryTimeouts", "RequestTimeouts", "RunTimeouts", "SharedTimeouts", "SupervisorTimeouts", "Timeouts",
)  # fmt: skip

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(**options: bool):  # without the generated methods, whose making every command would wait for
        """Give a class its fields; ``_Bounds`` has the methods."""
        return dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False)


class _Bounds:
    """Immutable seconds by name."""

    if not TYPE_CHECKING:  # what a type checker knows as the dataclass's own

        def __init__(self, **bounds: float) -> None:
            known = {each.name: each.default for each in dataclasses.fields(self)}
            if unknown := bounds.keys() - known.keys():
                raise TypeError(f"{type(self).__name__} has no bound {', '.join(sorted(unknown))}")
            self.__dict__.update(known | bounds)

        def __setattr__(self, name: str, value: object) -> None:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

        def __eq__(self, other: object) -> bool:
            return type(other) is type(self) and vars(other) == vars(self)

        def __hash__(self) -> int:
            return hash(tuple(vars(self).items()))

    def __repr__(self) -> str:
        """What differs from the defaults: signatures in ``help()`` stay short."""
        changed = (f"{name}={value!r}" for name, value in vars(self).items() if getattr(type(self), name) != value)
        return f"{type(self).__name__}({', '.join(changed)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class SharedTimeouts(_Bounds):
    """What several rooms wait for: the end of an undo or a process, and the next try."""

    cleanup: float = 30.0
    """The whole undo of one step, when an operation failed or was cancelled."""

    killed: float = 10.0
    """From SIGKILL until the process is gone; after that it is reported as one that cannot be killed."""

    reconnect_first: float = 0.05
    """First pause before containerd is tried again; grows with jitter up to ``reconnect_limit``."""

    reconnect_limit: float = 5.0
    """Longest pause between two tries to reach containerd."""

    steady: float = 10.0
    """How long a connection or a process must last before its next failure is the first of a new row of pauses."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ClientTimeouts(SharedTimeouts):
    """The client of containerd, and the processes that it adds to containers. For ``connect``."""

    rpc: float = 10.0
    """One call to containerd that only reads or writes its database."""

    task_rpc: float = 60.0
    """One call to containerd that runs a shim or a runtime (a missing FIFO reader alone makes containerd wait 30 s)."""

    content_lock: float = 5.0
    """Until containerd has released the lock of an upload whose write has ended, or was cancelled."""

    transfer: float = 1800.0
    """One call to containerd that takes as long as the data is large: unpacking, committing, collecting."""

    added_process: float = 7 * 24 * 3600.0
    """Longest life of a process that was added to a plugin, so that nothing waits without bound."""

    added_process_exit: float = 5.0
    """From SIGKILL to an added process until containerd reports its exit."""

    added_process_removal: float = 10.0
    """The removal of an added process when its caller has left; after that it continues in the background."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SupervisorTimeouts(ClientTimeouts):
    """A containerd of our own, and its shims. For ``supervise``."""

    containerd_start: float = 75.0
    """From the start of our own containerd until it serves; it gives each shim that is slow to answer 60 s first."""

    containerd_stop: float = 10.0
    """From SIGTERM to our own containerd until SIGKILL."""

    program_version: float = 10.0
    """Until containerd's program has printed its version; 30 ms are usual."""

    socket_close: float = 0.5
    """From the exit of containerd's process until its sockets are closed."""

    shim_answer: float = 1.0
    """One answer of a shim that is queried for the exit of its task; a healthy one takes a millisecond."""

    shim_reap: float = 0.1
    """From the exit of a process until its shim has noticed it; 4 ms are usual."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ExecutorTimeouts(SharedTimeouts):
    """The executor. For an executor on any client of containers."""

    exit_drain: float = 2.0
    """After an exit, until both streams are complete. Deleting the task earlier would lose output."""

    stream_wait: float = 5.0
    """After the task is deleted, until both copies have ended; the rest is cut off and logged."""

    reconcile: float = 120.0
    """Pause between two comparisons of the executor's containers with containerd's, when nothing else requests one."""


@dataclass(frozen=True, kw_only=True, repr=False)
class EmbeddedTimeouts(ExecutorTimeouts, ClientTimeouts):
    """An executor with its client. For ``open_executor``."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RegistryTimeouts(SharedTimeouts):
    """The client of registries, and where it finds credentials. For ``Registry``."""

    registry_lookup: float = 5.0
    """Resolving a registry's name to decide whether it is insecure; without an answer it is not."""

    registry_connect: float = 15.0
    """From the lookup of a registry's name until TCP and TLS are connected, through a proxy also that one's."""

    registry_answer: float = 120.0
    """One request until its final answer begins: with redirects, with a token fetched and the log-in repeated."""

    registry_document: float = 60.0
    """Waiting for the bytes of a manifest, a token or an error text, all tries together. A blob has this long and one
    second more for each ``AVERAGE_RATE`` bytes of it (see registry)."""

    registry_stall: float = 30.0
    """Until a registry begins to answer, and the window in which its bytes, or those to it, are counted (see
    ``MINIMUM_RATE`` of registry)."""

    registry_commit: float = 300.0
    """From the last byte of a blob that is pushed until the registry has checked and stored it."""

    registry_retry_first: float = 0.5
    """First pause before a request to a registry is tried again; grows with jitter up to ``registry_retry_limit``."""

    registry_retry_limit: float = 8.0
    """Longest pause that we choose between two tries."""

    registry_retry_after: float = 60.0
    """Longest pause that a registry may ask for (Retry-After); where it wants more, the operation fails at once."""

    credential_helper: float = 30.0
    """One run of a ``docker-credential-*`` program, which may ask a keyring that a person has to unlock."""


@dataclass(frozen=True, kw_only=True, repr=False)
class KeeperTimeouts(SharedTimeouts):
    """The log keeper."""

    keeper: float = 10.0
    """Until the log keeper is up, takes the streams of a plugin, or has ended; one that does not is killed."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ProxyTimeouts(SharedTimeouts):
    """The plugin proxy."""

    proxy: float = 10.0
    """Until the plugin proxy is up, has carried out what the engine sent it, or has ended, before it is killed."""

    proxy_check: float = 30.0
    """Between two checks that the plugin proxy answers, while nothing else is sent to it."""

    proxy_news: float = 1.0
    """Until the plugin proxy has reported what is mounted, after its greeting."""

    proxy_idle_connection: float = 1.0
    """How long a connection waits for its consumer before it makes room for another one."""

    guard_reads: float = 1.0
    """Until the guard of the plugin proxy has read that this exits as requested."""


@dataclass(frozen=True, kw_only=True, repr=False)
class HostTimeouts(SharedTimeouts):
    """The machine: mounts, control groups, systemd, AppArmor."""

    mount_answer: float = 2.0
    """Until a mounted file system has answered; one that has not counts as hung."""

    mount_least_answer: float = 0.05
    """The same for each one after others have used up the whole time."""

    cgroup_creation: float = 2.0
    """How long a removal waits for the creation of a container by another engine."""

    systemd_scope: float = 20.0
    """Until systemd has created a scope, which takes some ten milliseconds; the program runs without one after that."""

    apparmor_check: float = 20.0
    """One check of an AppArmor profile by its parser."""

    apparmor_load: float = 20.0
    """Loading one AppArmor profile into the kernel."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PackageTimeouts(SharedTimeouts):
    """Packages of plugins."""

    signatures: float = 60.0
    """For finding and reading all signatures of one package, whatever a registry sends, however slowly."""

    disk_usage: float = 60.0
    """Adding up the size of one directory; a larger one is reported as 0."""

    garbage_collection: float = 60.0
    """One garbage collection of containerd; a longer one continues without a waiting caller."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RunTimeouts(SharedTimeouts):
    """A run of a plugin, from its preparation to its exit, also in the foreground."""

    ready: float = 30.0
    """From the start of a plugin until its socket accepts a connection."""

    stop: float = 10.0
    """From SIGTERM to a plugin until SIGKILL."""

    activate: float = 10.0
    """One call to a plugin that only reports what it implements."""

    path_answer: float = 5.0
    """Until the file systems of paths that a plugin requests have answered."""

    network_files: float = 2.0
    """Between two checks of the host's /etc/hosts and /etc/resolv.conf, whose changes plugins on its network see."""

    runtime_trial: float = 60.0
    """One step of the trial of a runtime; ten milliseconds are usual, and ten seconds on an emulated machine."""

    entrypoint_answer: float = 5.0
    """Everything that explains why an entrypoint could not be started; milliseconds are usual."""

    shim_exit: float = 1.0
    """From the deletion of a task in the foreground until its shim exits."""

    last_report: float = 1.0
    """How long a report of a run in the foreground may take after a signal."""


@dataclass(frozen=True, kw_only=True, repr=False)
class EngineTimeouts(KeeperTimeouts, ProxyTimeouts, RunTimeouts):
    """The engine, and what it keeps running beside the plugins."""

    standby_start: float = 0.5
    """How long the removal of a run waits for the start of the next one where that was prepared."""

    containerd_wait: float = 15.0
    """How long a call that needs containerd waits for it, and until what runs of a plugin is known, after a start."""

    healthy: float = 60.0
    """Until a plugin with health checks is healthy, where a caller waits for that and gives no bound."""

    let_go: float = 5.0
    """Until all attached users of a plugin have released it, before a forced stop continues without them."""

    call: float = 60.0
    """One call to a plugin, where the caller gives no bound."""

    volume_list: float = 10.0
    """One call to a volume driver that only reads, where several drivers are queried at once."""

    volume_call: float = 150.0
    """One call to a volume driver through the plugin proxy, whose own limits are below this."""

    volume_report: float = 1.0
    """From the answer to a mount until the plugin proxy has reported it; a few milliseconds are usual."""

    proxy_settled: float = 30.0
    """Until the sockets are as the plugins say, also if the plugin proxy hangs and is replaced first."""

    metrics_answer: float = 1.0
    """Until containerd has answered for one scrape of the metrics."""

    announce: float = 60.0
    """From the start until the service manager gets READY at the latest, also where containerd is unavailable."""

    notify: float = 5.0
    """One message to the service manager; also the pause between two checks whether it knows the present status."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RequestTimeouts(SharedTimeouts):
    """Requests to any listener of HTTP."""

    idle_connection: float = 2.0
    """How long a connection is idle before it makes room for another, and how long that one waits otherwise."""

    last_request: float = 0.05
    """Until a connection has sent its request when the listener stops."""

    request_body: float = 30.0
    """Until the body of a request has come that is no stream."""

    request_stall: float = 120.0
    """How long the body of a request may stand still that is a stream."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ApiTimeouts(RequestTimeouts):
    """The API of the engine and its metrics."""

    release: float = 10.0
    """How long the end of an attached use waits for other operations of the plugin."""

    added_process_output: float = 2.0
    """From the exit of an added process until its output counts as complete."""

    last_progress: float = 10.0
    """Until a client has read the last lines of progress; a name is reserved until then."""

    metrics_shutdown: float = 3.0
    """Until scrapes have finished by themselves when their listener stops."""

    metrics_client: float = 30.0
    """Until a client has read its scrape."""

    api_shutdown: float = 1.0
    """Until requests have finished by themselves when the API stops."""

    api_undo: float = 30.0
    """Until requests have cleaned up that were cancelled because the API stops."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PageTimeouts(RequestTimeouts):
    """The web page."""

    ui_answer: float = 15.0
    """For each step of an answer of the engine to the web page."""

    ui_first_answer: float = 2.0
    """That the first web page waits for the first answer of the engine."""

    ui_result: float = 1.0
    """That a click waits for its result, until the page shows it under way."""

    ui_shutdown: float = 1.0
    """That requests to the web page have to end by themselves when it stops; further ones are cut off."""

    ui_stop: float = 5.0
    """From SIGTERM to the web page of an engine until SIGKILL."""


@dataclass(frozen=True, kw_only=True, repr=False)
class CommandTimeouts(_Bounds):
    """The command line."""

    engine_answer: float = 5.0
    """Each step of the engine's answer to a command that only asks for its state."""

    engine_connect: float = 5.0
    """Until the engine's queue has room for a connection of a client."""

    disconnected: float = 0.5
    """Until the engine has noticed that the client of an operation is gone, and has given it up."""

    completion: float = 1.0
    """The engine's answer to a shell that completes a word."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Timeouts(EngineTimeouts, EmbeddedTimeouts, SupervisorTimeouts, RegistryTimeouts, HostTimeouts, PackageTimeouts,
               ApiTimeouts, PageTimeouts, CommandTimeouts):  # fmt: skip
    """How long Moorage waits for what, in every room: the classes that this inherits from explain each bound."""


DEFAULT = Timeouts()
