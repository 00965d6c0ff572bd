"""Packages: what is sent to install, upgrade, grant, load and save, and the progress of these operations."""

from msgspec import UNSET, Struct, UnsetType, field

from moorage.api.schema.base import ApiObject
from moorage.api.schema.consumers import PublishRequest
from moorage.api.schema.plugins import PluginPrivilege, PolicyRequest

__all__ = (
    "ApplyRequest",
    "ErrorDetail",
    "InstallRequest",
    "LoadedPlugin",
    "OperationResult",
    "PrivilegeReview",
    "ProgressDetail",
    "ProgressLine",
    "SaveRequest",
    "TermsRequest",
)


class TermsRequest(Struct, frozen=True):
    """On which terms a plugin is installed, upgraded or granted what it requests."""

    privileges: list[PluginPrivilege] | UnsetType = UNSET
    """Exactly what is granted; absent for everything that is requested."""
    settings: list[str] | UnsetType = UNSET
    """NAME=VALUE."""
    secrets: list[str] | UnsetType = UNSET
    """NAME=VALUE, of which the values are never shown again."""
    attended: bool | UnsetType = UNSET
    """A person agreed to the privileges."""


class InstallRequest(TermsRequest, frozen=True):
    """On which terms a plugin is installed, and what it is labelled with."""

    labels: dict[str, str] | UnsetType = UNSET


class ApplyRequest(InstallRequest, frozen=True):
    """The desired state of one plugin; what is absent does not change. ``labels`` are all that it then has."""

    enabled: bool | UnsetType = UNSET
    """Absent for an enabled one."""
    policy: PolicyRequest | UnsetType = UNSET
    publish: PublishRequest | bool | UnsetType = UNSET
    """False for a plugin that is not published."""
    applied_by: str | UnsetType = UNSET
    """Identity of the file that this is for; a plugin that is made for it has it from then on."""
    adopt: bool | UnsetType = UNSET
    """A plugin that was not made for it has it from then on, too."""


class SaveRequest(Struct, frozen=True):
    """The plugins that an archive shall contain."""

    names: list[str]


class PrivilegeReview(ApiObject, frozen=True):
    """What a plugin would request with given settings."""

    privileges: list[PluginPrivilege]
    new: list[PluginPrivilege]
    """Those that were never granted."""
    refusal: str
    """Why the policy of the host refuses them; empty where it does not."""


class LoadedPlugin(ApiObject, frozen=True):
    """A plugin of an archive."""

    id: str
    name: str
    digest: str
    new: bool
    """Whether it was created; else it existed before."""
    privileges: list[PluginPrivilege]
    ungranted: list[PluginPrivilege]
    warnings: list[str]


class ProgressDetail(Struct, frozen=True):
    """Bytes of a blob; both absent where it is not being transferred."""

    current: int | UnsetType = UNSET
    total: int | UnsetType = UNSET


class OperationResult(ApiObject, frozen=True, kw_only=True):
    """The result of a push (``Tag`` and ``Size``) or of a create (``Id``, ``Name`` and ``Warnings``)."""

    id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    tag: str | UnsetType = UNSET
    digest: str
    """Of the manifest."""
    size: int | UnsetType = UNSET
    """Bytes of the manifest."""
    warnings: list[str] | UnsetType = UNSET


class ErrorDetail(Struct, frozen=True):
    """A failure after the first line: the status that the answer would have had, and one sentence."""

    code: int
    message: str
    rolled_back: bool | UnsetType = UNSET
    """True where something had been changed, and what was before is current again."""


class ProgressLine(Struct, frozen=True):
    """One line of the progress of a pull, push, upgrade or create; the last one has ``aux`` or ``error``."""

    status: str | UnsetType = UNSET
    progress_detail: ProgressDetail | UnsetType = field(default=UNSET, name="progressDetail")
    id: str | UnsetType = UNSET
    """The blob that the line is about, shortened."""
    aux: OperationResult | UnsetType = UNSET
    error_detail: ErrorDetail | UnsetType = field(default=UNSET, name="errorDetail")
    error: str | UnsetType = UNSET
