"""The steps of an apply: review and fetch all that is new, then change plugin by plugin until one fails."""

from collections import Counter
from collections.abc import Mapping

from msgspec import UNSET, Struct

from moorage import errors
from moorage.api.schema.consumers import PublishRequest
from moorage.api.schema.packages import ApplyRequest, PrivilegeReview, TermsRequest
from moorage.api.schema.plugins import PolicyRequest
from moorage.cli.consent import values_of
from moorage.cli.context import is_json
from moorage.cli.parameters import read_secret_file
from moorage.cli.progress import drain_progress, show_progress
from moorage.cli.references import registry_auth
from moorage.cli.state_diff import PluginDiff
from moorage.cli.state_file import DesiredPlugin
from moorage.client import MoorageClient, Progress

__all__ = ("PlannedChange", "apply_change", "fetch_package", "plan_change")


class PlannedChange(Struct, frozen=True):
    """A change that the file grants, and the secrets for it."""

    diff: PluginDiff
    review: PrivilegeReview | None = None
    """None for a plugin to be removed, or to be left as it is."""
    secrets: tuple[str, ...] = ()

    @property
    def remote(self) -> str:
        """The reference to pull; empty where the package stays."""
        desired = self.diff.desired
        is_pulled = desired is not None and (not self.diff.is_installed or self.diff.upgrade)
        return desired.reference if desired is not None and is_pulled else ""


def plan_change(client: MoorageClient, diff: PluginDiff, *, grant_all: bool) -> PlannedChange:
    """The change of one plugin; nothing is done.

    Raises:
        errors.Denied: the file, or the policy of the host, does not grant it
        errors.Invalid: a secret cannot be read
    """
    if diff.desired is None or not diff.texts:
        return PlannedChange(diff)
    secrets = tuple(read_secret_file(key, diff.desired.secrets[key]) for key in diff.secrets)
    planned = PlannedChange(diff, secrets=secrets)
    return PlannedChange(diff, _review(client, planned, diff.desired, grant_all=grant_all), secrets)


def fetch_package(client: MoorageClient, planned: PlannedChange) -> None:
    """Fetch the package of a change, if it has one."""
    if planned.remote:
        with client.fetch(planned.remote, registry_auth(planned.remote)) as progress:
            _show(progress)


def apply_change(client: MoorageClient, planned: PlannedChange, identity: str, wait: float) -> None:
    """Make a change; return when the plugin is ready, and with ``wait`` healthy.

    Raises:
        errors.MoorageError: by kind; ``is_rolled_back`` says whether something was changed and is undone
    """
    diff = planned.diff
    if diff.desired is None:
        if diff.stop:
            client.disable(diff.name)
        client.remove(diff.name)
        return
    if planned.review is None:
        if wait and diff.desired.enabled:
            client.wait_healthy(diff.name, wait)
        return
    request = ApplyRequest(
        planned.review.privileges,
        list(diff.settings),
        list(planned.secrets),
        enabled=diff.desired.enabled,
        policy=PolicyRequest(**diff.policy) if diff.policy else UNSET,
        publish=_publication(diff),
        labels=UNSET if diff.labels is None else dict(diff.labels),
        applied_by=identity,
        adopt=diff.adopts,
    )
    auth = registry_auth(planned.remote) if planned.remote else ""
    with client.apply(diff.name, planned.remote, request, auth, wait=wait) as progress:
        _show(progress)


def _publication(diff: PluginDiff) -> PublishRequest | bool:
    if isinstance(diff.publish, Mapping):
        return PublishRequest(**diff.publish)
    return diff.publish is not False  # True changes nothing


def _show(progress: Progress) -> None:
    """With --json there is one document a plugin and nothing else."""
    if is_json():
        drain_progress(progress)
    else:
        show_progress(progress)


def _review(
    client: MoorageClient, planned: PlannedChange, desired: DesiredPlugin, *, grant_all: bool
) -> PrivilegeReview:
    """What the plugin will request with the desired settings. Raises: Denied."""
    diff, remote = planned.diff, planned.remote
    settings = TermsRequest(settings=list(diff.settings), secrets=list(planned.secrets))
    name = diff.name if diff.is_installed else ""
    review = client.request_privileges(remote, name, settings, registry_auth(remote) if remote else "")
    if not (remote or diff.settings or planned.secrets or review.new):
        return review  # it has what it requests, and that stays
    if review.refusal:
        raise errors.Denied(review.refusal)
    if grant_all or desired.granted is None:
        return review
    requested = Counter((each.name, tuple(sorted(each.value))) for each in review.privileges)
    if requested != Counter((name, tuple(sorted(values))) for name, values in desired.granted):
        listed = "; ".join(f"{each.name}: {values_of(each)}" for each in review.privileges) or "nothing"
        raise errors.Denied(
            f"plugin {desired.name} requests {listed}, and the file grants something else; "
            "write that into its privileges, or privileges: all"
        )
    return review
