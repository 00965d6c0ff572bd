"""A server of tokens for docker-registry."""

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from support.registries import PASSWORD, USER, Authority


class Tokens:
    """A token server for docker-registry: grants both classes to who logs in, to others only pulls, or nothing."""

    def __init__(self, authority: Authority, *, knows_plugins: bool, is_open: bool = True) -> None:
        self.scopes: list[list[str]] = []
        self.forms: list[dict[str, Any]] = []
        self._authority = authority
        self._knows_plugins = knows_plugins
        self._open_actions = ("pull",) if is_open else ()

    def section(self, realm: str) -> dict[str, Any]:
        """The config section of a registry that takes the tokens of ``realm``."""
        bundle = str(self._authority.pair.certificate)
        return {"token": {"realm": realm, "service": "registry", "issuer": "tokens", "rootcertbundle": bundle}}

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/token", self._get)
        app.router.add_post("/token", self._post)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/token"
        finally:
            await runner.cleanup()

    async def _get(self, request: web.Request) -> web.Response:
        login = (
            request.headers.get("Authorization") == "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        )
        return self._answer(request.query.getall("scope"), login=login)

    async def _post(self, request: web.Request) -> web.Response:
        form = await request.post()
        self.forms.append(dict(form))
        return self._answer(str(form["scope"]).split(), login=form["refresh_token"] == "refresh")

    def _answer(self, scopes: list[str], *, login: bool) -> web.Response:
        self.scopes.append(scopes)
        if not self._knows_plugins and any("(" in each for each in scopes):
            return web.json_response({"errors": [{"message": "no such class"}]}, status=400)
        access = []
        for scope in scopes:
            kind, path, actions = scope.split(":")
            name, _, of_class = kind.partition("(")
            granted = [each for each in actions.split(",") if login or each in self._open_actions]
            access.append({"type": name, "class": of_class.rstrip(")"), "name": path, "actions": granted})
        now = int(time.time())
        times = {"iat": now, "nbf": now - 60, "exp": now + 300}
        claims = {"iss": "tokens", "aud": "registry", "sub": "me", "jti": "1", "access": access, **times}
        return web.json_response({"access_token": self._authority.sign_token(claims), "expires_in": 300})
