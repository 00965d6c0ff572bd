"""Every bound on waiting, in one place: float seconds. A constructor takes the whole and uses its own lines of it."""

from dataclasses import dataclass

__all__ = ("DEFAULT", "Timeouts")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long Moorage waits for what. All values are seconds."""

    rpc: float = 10.0
    """One call to containerd that only reads or writes its database."""

    task_rpc: float = 60.0
    """One call to containerd that runs a shim or a runtime (a missing FIFO reader alone makes containerd wait 30 s)."""

    transfer: float = 1800.0
    """One call to containerd that takes as long as the data is large: unpacking, committing, collecting."""

    cleanup: float = 30.0
    """The whole undo of one step, when an operation failed or was cancelled."""

    killed: float = 10.0
    """From SIGKILL until the process is gone; after that it is reported as one that cannot be killed."""

    exit_drain: float = 2.0
    """After an exit, until both streams have reached their end. Deleting the task earlier would lose output."""

    stream_wait: float = 5.0
    """After the task is deleted, until both copies have ended; what is left then is cut off and logged."""

    reconnect_first: float = 0.05
    """First pause before containerd is tried again; grows with jitter up to ``reconnect_limit``."""

    reconnect_limit: float = 5.0
    """Longest pause between two tries to reach containerd."""

    reconcile: float = 120.0
    """Pause between two comparisons of what we hold with what containerd says, when nothing else asks for one."""

    containerd_start: float = 75.0
    """From the start of our own containerd until it serves; it gives each shim that is slow to answer 60 s first."""

    containerd_wait: float = 15.0
    """How long a call that needs containerd waits for it, and until what runs of a plugin is known, after a start."""

    containerd_stop: float = 10.0
    """From SIGTERM to our own containerd until SIGKILL."""

    keeper: float = 10.0
    """Until the log keeper is up, takes the streams of a plugin, or has ended; one that does not is killed."""

    ready: float = 30.0
    """From the start of a plugin until its socket accepts a connection."""

    stop: float = 10.0
    """From SIGTERM to a plugin until SIGKILL."""

    let_go: float = 5.0
    """Until everybody who is attached to a plugin has let go of it, before a forced stop goes on without them."""

    call: float = 60.0
    """One call to a plugin, where the caller gives no bound."""

    activate: float = 10.0
    """One call to a plugin that is only asked what it implements."""

    announce: float = 60.0
    """From the start until the service manager is told READY at the latest, also where containerd is unavailable."""

    notify: float = 5.0
    """One message to the service manager; also from one look whether it knows how we are to the next."""

    registry_lookup: float = 5.0
    """Resolving a registry's name to decide whether it is insecure; without an answer it is not."""

    registry_connect: float = 15.0
    """From the look-up of a registry's name until TCP and TLS stand, through a proxy also that one's."""

    registry_answer: float = 120.0
    """One request until its final answer begins: with redirects, with a token fetched and the log-in repeated."""

    registry_document: float = 60.0
    """Waiting for the bytes of a manifest, a token or an error text, all tries together. A blob has this long and one
    second more for each ``AVERAGE_RATE`` bytes of it (see distribution)."""

    registry_stall: float = 30.0
    """Until a registry begins to answer, and the window in which its bytes, or ours to it, are counted (see
    ``MINIMUM_RATE`` of distribution)."""

    registry_commit: float = 300.0
    """From the last byte of a blob that is pushed until the registry has checked and stored it."""

    network_files: float = 2.0
    """Between two checks of the host's /etc/hosts and /etc/resolv.conf, whose changes plugins on its network see."""

    signatures: float = 60.0
    """For finding and reading all signatures of one package, whatever a registry sends, however slowly."""

    registry_retry_first: float = 0.5
    """First pause before a request to a registry is tried again; grows with jitter up to ``registry_retry_limit``."""

    registry_retry_limit: float = 8.0
    """Longest pause that we choose between two tries."""

    registry_retry_after: float = 60.0
    """Longest pause that a registry may ask for (Retry-After); where it wants more, the operation fails at once."""

    credential_helper: float = 30.0
    """One run of a ``docker-credential-*`` program, which may ask a keyring that a person has to unlock."""


DEFAULT = Timeouts()
