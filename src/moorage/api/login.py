"""``POST /auth``: what ``docker login`` calls."""

from aiohttp import web

from moorage import errors
from moorage.api.query import json_body
from moorage.api.request import Request, json_answer
from moorage.distribution.auth import read_userpass

__all__ = ("auth",)


async def auth(request: Request) -> web.StreamResponse:
    """POST /auth: whether a registry accepts credentials."""
    body = await request.body()  # as JSON whatever its type says: that is how the daemon takes it
    document = json_body(body, "application/json", has_body=request.http.body_exists)
    if not isinstance(document, dict):
        raise errors.Invalid("invalid JSON: the body must be an object with serveraddress, username and password")
    credentials = read_userpass(document, "the body of POST /auth")
    address = next((value for key, value in document.items() if key.lower() == "serveraddress"), None) or ""
    if not isinstance(address, str):
        raise errors.Invalid("cannot read the body of POST /auth: serveraddress is not a text")
    granted: list[str] = []

    async def check() -> None:
        granted.append(await request.backend.packages.log_in(address, credentials))

    await request.while_connected(check)
    return json_answer({"IdentityToken": granted[0], "Status": "Login Succeeded"})
