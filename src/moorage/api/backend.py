"""What the API needs of an engine. Failures are raised by kind (``moorage.errors``), with texts for the user."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from moorage.engine.changes.values import ChangeTerms, PolicyChange
from moorage.engine.grants import PrivilegeRequest
from moorage.engine.installation import Operation
from moorage.engine.telemetry import Metrics
from moorage.engine.transfers import LoadResult
from moorage.engine.values import EngineInfo, Holder, InstallOptions, PluginEvent, PluginView
from moorage.host.cgroup_usage import CgroupUsage, ProcessView
from moorage.logs.lines import Line
from moorage.packages.usage import DiskUsage, Pruned
from moorage.plugins import Privilege
from moorage.proxy.protocol import PublishOptions
from moorage.registry.credentials import Credentials
from moorage.runs.http_call import PluginResponse

if TYPE_CHECKING:
    from moorage.containerd.processes import AddedProcess, ExecCommand

__all__ = ("Backend", "Desired", "Packages", "Transfers")


class Packages(Protocol):
    """What is done with packages of registries.

    ``pull`` and ``upgrade`` refuse on the way into their block what can be refused; what is in it does the work.
    """

    async def privileges(self, text: str, credentials: Credentials) -> Sequence[Privilege]:
        """What the plugin with this reference asks for. Raises: Invalid, NotFound, Unauthorized, ..."""

    async def log_in(self, address: str, credentials: Credentials) -> str:
        """Check credentials against a registry; returns an identity token, or "". Raises: Unauthorized, Invalid, ..."""

    async def request(self, text: str, name: str, terms: InstallOptions, credentials: Credentials) -> PrivilegeRequest:
        """What a plugin would request with the settings of these terms, by reference, by name of one that is here, or
        by both (an upgrade). Raises: as ``privileges``.
        """

    async def grant(self, name: str, terms: InstallOptions) -> PluginView:
        """Grant what a plugin requests with its settings. Raises: NotFound, Invalid, Denied, Unavailable."""

    def pull(
        self, text: str, name: str, terms: InstallOptions, credentials: Credentials
    ) -> AbstractAsyncContextManager[Operation]:
        """Install the plugin with this reference, under a name ("": its own). Raises: Conflict, Denied, Invalid, ..."""

    def upgrade(
        self, name: str, text: str, terms: InstallOptions, credentials: Credentials, change: ChangeTerms
    ) -> AbstractAsyncContextManager[Operation]:
        """Change the version of a plugin. Raises: as ``pull``; Conflict where it is enabled, or in use."""


class Desired(Protocol):
    """The desired state of plugins, as files of apply have it. What can be refused is on the way into the block."""

    def fetch(self, text: str, credentials: Credentials) -> AbstractAsyncContextManager[Operation]:
        """Import a package for a plugin that is applied within an hour. Raises: as ``Packages.pull``."""

    def apply(
        self, name: str, text: str, terms: InstallOptions, credentials: Credentials, change: ChangeTerms
    ) -> AbstractAsyncContextManager[Operation]:
        """Install or change the plugin with this name; what fails is rolled back. Raises: as ``Packages.upgrade``."""


class Transfers(Protocol):
    """Transfers of packages out of and into an engine, their names, and what they take of the disk.

    Plugins are named as for ``Backend``, and the same is raised for names.
    """

    async def tag(self, text: str, name: str) -> object:
        """Give a plugin a further name; one that it has is fine. Raises: Conflict where another one has it."""

    async def rename(self, text: str, name: str) -> object:
        """Replace the name of a plugin. Raises: Conflict where another one has it."""

    def push(self, text: str, to: str, credentials: Credentials) -> AbstractAsyncContextManager[Operation]:
        """Push a package to a registry unchanged, to ``to``, or else to the name that was used.

        Raises: Invalid, Conflict, Unavailable; when it is run: what the registry says, by kind.
        """

    def save(self, names: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """An OCI archive of these plugins. Raises, before its first byte: Invalid, Conflict, Unavailable."""

    async def usage(self) -> DiskUsage:
        """What plugins take of the disk. Raises: Unavailable."""

    async def prune(self) -> Pruned:
        """Remove what nothing refers to. Raises: Unavailable."""

    async def load(self, archive: AsyncIterator[bytes], name: str = "") -> Sequence[LoadResult]:
        """Take in the plugins of an OCI archive, all or none. Raises: Invalid, NotFound, Conflict, Unavailable."""

    def create_from(
        self, name: str, body: AsyncIterator[bytes], remote: str, credentials: Credentials
    ) -> AbstractAsyncContextManager[Operation]:
        """Make a plugin of an image, in an archive or in a registry, and a config. Raises: as ``load``, and more."""


class Backend(Protocol):
    """The engine. A plugin is named by full id, name (default tag added) or unique id prefix, in that order.

    Every method that takes ``name`` raises NotFound for an unknown one and Invalid for an ambiguous one. Methods that
    start or stop something raise Unavailable while containerd is unavailable. A caller that is cancelled stops waiting;
    what it started continues, except ``create``, which is undone.
    """

    @property
    def packages(self) -> Packages:
        """What is done with packages of registries."""

    @property
    def desired(self) -> Desired:
        """The desired state of plugins."""

    @property
    def transfers(self) -> Transfers:
        """Packages of plugins: saved, loaded, pushed, measured."""

    def info(self) -> EngineInfo:
        """The engine as a whole. Never waits."""

    def list(self) -> Sequence[PluginView]:
        """Every plugin, by name. Never waits."""

    def get(self, name: str) -> PluginView:
        """One plugin. Never waits."""

    async def create(self, name: str, package: AsyncIterator[bytes]) -> PluginView:
        """Make a plugin of a tar stream of config.json and rootfs/, gzipped or not. Raises: Conflict, Invalid."""

    def read_files(self, name: str, path: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A file or directory of it as a tar. Raises: Conflict where nothing runs; NotFound; Unsupported."""

    async def write_files(self, name: str, path: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar into a directory of it. Raises: Conflict where nothing runs; NotFound; Invalid; Unsupported."""

    async def replace_package(self, name: str, package: AsyncIterator[bytes], change: ChangeTerms) -> Sequence[str]:
        """Give a plugin the package of such a stream; settings that no longer apply. Raises: as ``create``; Conflict
        where it is enabled (unless ``restart``) or in use (unless ``force``).
        """

    async def enable(self, name: str, within: float) -> None:
        """Start it and wait until its socket accepts, ``within`` seconds (0: the default).

        Raises: Conflict where it is enabled; else why it did not come up, with its last lines, and it is disabled.
        """

    async def disable(self, name: str, *, force: bool) -> None:
        """Stop it, and return when nothing of the run is left. Raises: Conflict where it is disabled, or in use."""

    async def restart(self, name: str) -> None:
        """Stop it and start it again. Raises: Conflict where it is disabled; why it did not come up."""

    async def wait_healthy(self, name: str, within: float) -> None:
        """Return when it is ready, and healthy where it has checks, or after ``within`` seconds.

        Raises: Conflict where it is disabled; MoorageError saying why it is not.
        """

    async def set(self, name: str, assignments: Sequence[str], secrets: Sequence[str]) -> None:
        """Change settings, all or none; ``secrets`` are never shown again. Raises: Conflict while enabled, Invalid."""

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove it with all that is its own. Raises: Conflict while enabled or in use, unless forced."""

    async def set_policy(self, name: str, change: PolicyChange) -> PluginView:
        """Change its policy, also while it runs. Raises: Invalid."""

    def host_path(self, name: str, inside: str) -> str:
        """The host's path of a path inside it. Never waits. Raises: Conflict for its root while that does not exist."""

    async def usage(self, name: str) -> CgroupUsage:
        """What it uses of this machine now. Raises: Conflict while it does not run."""

    async def processes(self, name: str) -> Sequence[ProcessView]:
        """What runs in it now."""

    async def metrics(self) -> Metrics:
        """What is counted since the engine began, and measured now. Waits about a second where containerd hangs."""

    async def call(self, name: str, method: str, body: bytes, within: float) -> PluginResponse:
        """POST to the plugin's socket and return its answer, within this many seconds (0: the default).

        Raises: Conflict where it is not ready, Invalid where it speaks no HTTP, Unavailable for no answer.
        """

    def execute(self, name: str, command: "ExecCommand") -> "AbstractAsyncContextManager[AddedProcess]":
        """A process beside the plugin's own, killed at the end of the block. Raises: Conflict where nothing runs."""

    async def signal(self, name: str, number: int) -> None:
        """Signal its first process. Raises: Conflict where nothing runs."""

    async def resize(self, name: str, exec_id: str, rows: int, columns: int) -> None:
        """The size of the terminal of such a process. Raises: NotFound."""

    async def set_labels(self, name: str, added: Mapping[str, str], removed: Sequence[str]) -> PluginView:
        """Change its labels. Raises: Invalid for labels that no plugin can have."""

    async def publish(
        self,
        name: str,
        names: Sequence[str],
        options: PublishOptions,
        group: str,
        *,
        force: bool,
        podman: bool | None = None,
    ) -> PluginView:
        """Give it sockets for consumers, by these names or its own; one that is published gets the new names instead.

        Raises: Invalid for a name or option; Conflict where another plugin or program has a name, or a mount is in use.
        """

    async def unpublish(self, name: str, *, force: bool) -> None:
        """Remove its sockets. Raises: Conflict where it is not published, or a consumer uses it, unless forced."""

    async def volume_call(
        self, name: str, method: str, body: dict[str, Any], consumer: str, within: float
    ) -> dict[str, Any]:
        """Call ``VolumeDriver.<method>`` of it through the plugin proxy, within this many seconds (0: the default).

        Raises: Conflict where it is disabled, Unavailable for no answer; MoorageError with what the driver reports.
        """

    async def acquire(self, name: str, owner: str, *, is_attached: bool) -> Holder:
        """Add a holder; an attached one is not stored over a restart of the engine. Raises: Conflict."""

    async def wait_release_requested(self, name: str, token: str) -> None:
        """Return when a forced stop asks this attached holder to release."""

    async def release(self, name: str, token: str) -> None:
        """Remove a holder. Raises: NotFound for a token that it does not have."""

    def logs(
        self, name: str, *, tail: int | None, since: datetime | None, follow: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[Line]]:
        """Its output, oldest first: the last ``tail`` lines (None: all), written after ``since``."""

    def events(
        self, *, since: int | None, until: int | None
    ) -> AbstractAsyncContextManager[AsyncIterator[PluginEvent]]:
        """Events from now on; where a bound is given, before them the buffered ones from ``since``. Ends at ``until``.

        Both are nanoseconds since 1970.
        """
