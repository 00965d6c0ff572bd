"""Packages of registries: Docker's calls, and ours beside them that take settings and wishes along."""

import json
from typing import Any

from aiohttp import web

from moorage import errors
from moorage.api.go_json import json_type_error
from moorage.api.progress import stream_progress
from moorage.api.query import boolean
from moorage.api.request import Request, json_answer
from moorage.distribution.auth import Credentials, decode_registry_auth
from moorage.engine.consent import Request as Requested
from moorage.engine.values import Terms
from moorage.plugins import Privilege, parse_privileges, privileges_to_api

__all__ = ("ensure", "grant", "privileges", "pull", "pull_with", "request", "upgrade", "upgrade_with")

_FIELDS = {"privileges": list, "settings": list, "secrets": list, "attended": bool}


async def privileges(request: Request) -> web.StreamResponse:
    """GET /plugins/privileges."""
    asked: list[Privilege] = []

    async def ask() -> None:
        asked.extend(await request.backend.packages.privileges(request.query("remote"), _credentials(request)))

    await request.while_connected(ask)
    return json_answer(privileges_to_api(asked))


async def request(request: Request) -> web.StreamResponse:
    """POST privileges: what a plugin would request with these settings, what of it is new, and the policy's word."""
    found: list[Requested] = []
    terms, credentials = _terms(await request.json(), once=False), _credentials(request)

    async def ask() -> None:
        packages = request.backend.packages
        found.append(await packages.request(request.query("remote"), request.query("name"), terms, credentials))

    await request.while_connected(ask)
    return json_answer(
        {
            "Privileges": privileges_to_api(found[0].privileges),
            "New": privileges_to_api(found[0].new),
            "Refusal": found[0].refusal,
        }
    )


async def grant(request: Request) -> web.StreamResponse:
    """POST grant: ``privileges`` as inspect shows them; left out, everything is granted that is requested."""
    plugin = await request.backend.packages.grant(request.name, _terms(await request.json(), once=False))
    return json_answer(privileges_to_api(plugin.privileges))


async def pull(request: Request) -> web.StreamResponse:
    """POST /plugins/pull. The body is what is granted."""
    return await _pull(request, Terms(parse_privileges(await _raw(request))))


async def pull_with(request: Request) -> web.StreamResponse:
    """POST pull: as Docker's, with settings; ``privileges`` may be left out, and everything is granted then."""
    return await _pull(request, _terms(await request.json(), once=False))


async def ensure(request: Request) -> web.StreamResponse:
    """POST ensure: as our pull, and nothing where the plugin is there from the same reference with these settings."""
    return await _pull(request, _terms(await request.json(), once=True))


async def upgrade(request: Request) -> web.StreamResponse:
    """POST /plugins/{name}/upgrade. The body is what is granted."""
    granted = parse_privileges(await _raw(request))
    return await _upgrade(request, Terms(granted), restart=False, force=False)


async def upgrade_with(request: Request) -> web.StreamResponse:
    """POST upgrade: as Docker's; with ``restart`` also of a plugin that is enabled, with ``force`` of one in use."""
    terms = _terms(await request.json(), once=False)
    restart, force = boolean(request.query("restart")), boolean(request.query("force"))
    return await _upgrade(request, terms, restart=restart, force=force)


async def _pull(request: Request, terms: Terms) -> web.StreamResponse:
    credentials = _credentials(request)
    made: list[web.StreamResponse] = []

    async def work() -> None:
        operation = request.backend.packages.pull(request.query("remote"), request.query("name"), terms, credentials)
        async with operation as pulling:
            made.append(await stream_progress(request, pulling.run, _headers(pulling.name)))

    await request.while_connected(work)
    return made[0]


async def _upgrade(request: Request, terms: Terms, *, restart: bool, force: bool) -> web.StreamResponse:
    credentials = _credentials(request)
    made: list[web.StreamResponse] = []

    async def work() -> None:
        operation = request.backend.packages.upgrade(
            request.name, request.query("remote"), terms, credentials, restart=restart, force=force
        )
        async with operation as upgrading:
            made.append(await stream_progress(request, upgrading.run, _headers(upgrading.name)))

    await request.while_connected(work)
    return made[0]


def _headers(name: str) -> dict[str, str]:
    """The docker CLI sets and enables the plugin that is named here."""
    return {"Docker-Plugin-Name": name}


def _credentials(request: Request) -> Credentials:
    return decode_registry_auth(request.http.headers.get("X-Registry-Auth", ""))


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


def _terms(document: Any, *, once: bool) -> Terms:
    if not isinstance(document, dict | None):
        raise errors.Invalid("invalid JSON: the body must be an object")
    fields = {key: value for key, value in (document or {}).items() if value is not None}
    for key, value in fields.items():
        if key not in _FIELDS:
            raise errors.Invalid(f"invalid JSON: there is no field {key!r} here; known: {', '.join(_FIELDS)}")
        if not isinstance(value, _FIELDS[key]):
            raise errors.Invalid(f"invalid JSON: the field {key!r} is of a wrong type")
    granted = parse_privileges(_dump(fields["privileges"])) if "privileges" in fields else None
    return Terms(
        granted,
        is_attended=fields.get("attended", False),
        assignments=_texts(fields, "settings"),
        secrets=_texts(fields, "secrets"),
        once=once,
    )


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def _texts(fields: dict[str, Any], key: str) -> tuple[str, ...]:
    values = fields.get(key, [])
    if not all(isinstance(value, str) for value in values):
        raise errors.Invalid(f"invalid JSON: {key} is a list of texts NAME=VALUE")
    return tuple(values)
