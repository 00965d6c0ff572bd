"""Routes for packages of registries: Docker's calls, and the same with settings and grants."""

import json
from typing import Any

from aiohttp import web
from msgspec.structs import replace

from moorage import errors
from moorage.api.conversion import to_desired, to_privileges
from moorage.api.http.go_json import json_type_error
from moorage.api.http.query import match_fields, read_object
from moorage.api.progress import stream_operation
from moorage.api.request import Request, json_answer, registry_credentials
from moorage.api.schema.packages import ApplyRequest, InstallRequest, PrivilegeReview, TermsRequest
from moorage.engine.changes.values import ChangeTerms
from moorage.engine.values import InstallOptions
from moorage.plugins import check_labels, parse_privileges

__all__ = (
    "apply",
    "ensure",
    "fetch",
    "grant",
    "privileges",
    "pull",
    "pull_with",
    "push",
    "request",
    "upgrade",
    "upgrade_with",
)


async def privileges(request: Request) -> web.StreamResponse:
    """GET /plugins/privileges."""
    remote, credentials = request.query("remote"), registry_credentials(request)
    requested = await request.while_connected(lambda: request.backend.packages.privileges(remote, credentials))
    return json_answer(to_privileges(requested))


async def request(request: Request) -> web.StreamResponse:
    """POST privileges: what a plugin would request with these settings, what of it is new, and the policy's word."""
    terms, credentials = _terms(await request.json(), once=False), registry_credentials(request)
    remote, name = request.query("remote"), request.query("name")
    found = await request.while_connected(lambda: request.backend.packages.request(remote, name, terms, credentials))
    review = PrivilegeReview(to_privileges(found.privileges), to_privileges(found.new), found.refusal)
    return json_answer(review)


async def grant(request: Request) -> web.StreamResponse:
    """POST grant: ``privileges`` as inspect shows them; left out, everything is granted that is requested."""
    plugin = await request.backend.packages.grant(request.name, _terms(await request.json(), once=False))
    return json_answer(to_privileges(plugin.privileges))


async def pull(request: Request) -> web.StreamResponse:
    """POST /plugins/pull. The body is what is granted."""
    return await _pull(request, InstallOptions(parse_privileges(await _raw(request))))


async def pull_with(request: Request) -> web.StreamResponse:
    """POST pull: as Docker's, with settings; ``privileges`` may be left out, and everything is granted then."""
    return await _pull(request, _terms(await request.json(), once=False, kind=InstallRequest))


async def ensure(request: Request) -> web.StreamResponse:
    """POST ensure: as pull, unless the plugin is installed from the same reference with these settings."""
    return await _pull(request, _terms(await request.json(), once=True, kind=InstallRequest))


async def upgrade(request: Request) -> web.StreamResponse:
    """POST /plugins/{name}/upgrade. The body is what is granted."""
    granted = parse_privileges(await _raw(request))
    return await _upgrade(request, InstallOptions(granted), ChangeTerms())


async def upgrade_with(request: Request) -> web.StreamResponse:
    """POST upgrade: as Docker's; with ``restart`` also of a plugin that is enabled, with ``force`` of one in use.

    With ``wait`` one that is not healthy after so many seconds is rolled back.
    """
    terms = _terms(await request.json(), once=False)
    return await _upgrade(request, terms, request.change_terms())


async def fetch(request: Request) -> web.StreamResponse:
    """POST fetch: the package is imported, and stays for an hour."""
    operation = request.backend.desired.fetch(request.query("remote"), registry_credentials(request))
    return await stream_operation(request, operation)


async def apply(request: Request) -> web.StreamResponse:
    """POST apply: install or change a plugin, in one step that is rolled back where it fails.

    Without ``remote`` its version does not change. With ``wait`` it must be healthy after so many seconds.
    """
    document = await request.json()
    fields = match_fields(document, ApplyRequest)
    given = {name: fields[name] for name in InstallRequest.__struct_fields__ if name in fields}
    terms = _terms(given, once=False, kind=InstallRequest)
    body = read_object({name: value for name, value in fields.items() if name != "privileges"}, ApplyRequest)
    change = replace(request.change_terms(), restart=True, force=False, desired=to_desired(body))
    operation = request.backend.desired.apply(
        request.name,
        request.query("remote"),
        replace(terms, applied_by=body.applied_by or ""),
        registry_credentials(request),
        change,
    )
    return await stream_operation(request, operation, has_name=True)


async def _pull(request: Request, terms: InstallOptions) -> web.StreamResponse:
    remote, name, credentials = request.query("remote"), request.query("name"), registry_credentials(request)
    operation = request.backend.packages.pull(remote, name, terms, credentials)
    return await stream_operation(request, operation, has_name=True)


async def _upgrade(request: Request, terms: InstallOptions, change: ChangeTerms) -> web.StreamResponse:
    credentials = registry_credentials(request)
    operation = request.backend.packages.upgrade(request.name, request.query("remote"), terms, credentials, change)
    return await stream_operation(request, operation, has_name=True)


async def _raw(request: Request) -> bytes:
    """The body, after it was seen to be JSON by Docker's rules."""
    document = await request.json()
    if document is None:
        return b""
    if not isinstance(document, list):
        wrong = json_type_error(document, "plugin.Privileges")
        raise errors.Invalid(f"invalid JSON: {wrong}; privileges: they must be a list")
    for each in document:
        if not isinstance(each, dict | None):
            raise errors.Invalid(f"invalid JSON: {json_type_error(each, 'plugin.Privilege')}")
    return _dump([each or {} for each in document])


def _terms(document: Any, *, once: bool, kind: type[TermsRequest] = TermsRequest) -> InstallOptions:
    fields = match_fields(document, kind)
    privileges = fields.pop("privileges", None)
    if not isinstance(privileges, list | None):
        raise errors.Invalid("invalid JSON: the field 'privileges' is of a wrong type: it must be a list")
    request = read_object(fields, kind)
    labels = (request.labels or {}) if isinstance(request, InstallRequest) else {}
    check_labels(labels)
    return InstallOptions(
        parse_privileges(_dump(privileges)) if privileges is not None else None,
        is_attended=bool(request.attended),
        assignments=tuple(request.settings or ()),
        secrets=tuple(request.secrets or ()),
        once=once,
        labels=labels,
    )


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


async def push(request: Request) -> web.StreamResponse:
    """POST /plugins/{name}/push. ``to``, which Docker lacks, is another reference than its name."""
    operation = request.backend.transfers.push(request.name, request.query("to"), registry_credentials(request))
    return await stream_operation(request, operation)
