"""One check of the suite, what it is given, and how it fails."""

import json
import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from moorage.conformance.exchange import PluginConnection, PluginReply, exchange
from moorage.conformance.target import Target

__all__ = ("CheckFailed", "CheckSkipped", "ConformanceCheck", "PluginCalls", "require")


class CheckFailed(Exception):
    """The plugin does not do what the protocol requires."""


class CheckSkipped(Exception):
    """The check is not possible here."""


class ConformanceCheck(Struct, frozen=True):
    """One check."""

    id: str
    """Stable, for reports: V05."""
    title: str
    """What the plugin must do."""
    run: Callable[["PluginCalls"], None]
    """Raises: CheckFailed, CheckSkipped."""
    needs_restart: bool = False
    """Whether it kills or stops the plugin."""


def require(condition: object, text: str) -> None:
    """Raises: CheckFailed with this text unless the condition is true."""
    if not condition:
        raise CheckFailed(text)


class PluginCalls:
    """The plugin under test, with the calls that checks make. Names of what checks create do not repeat."""

    def __init__(
        self, target: Target, prefix: str, seconds: float, options: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """``prefix`` of the kind's methods; ``seconds`` for one call; ``options`` of what the checks create."""
        self.target, self.prefix, self.seconds, self.options = target, prefix, seconds, dict(options)

    def connect(self) -> PluginConnection:
        """A connection for several calls."""
        return PluginConnection(self.target.socket, self.seconds)

    def name(self) -> str:
        """A name that is not used."""
        return f"check-{secrets.token_hex(6)}"

    def raw(self, method: str, body: bytes | None, headers: dict[str, str] | None = None) -> PluginReply:
        """The answer to any bytes; ``method`` is a whole one, or the last part of one of the kind."""
        whole = method if "." in method else f"{self.prefix}.{method}"
        return exchange(self.target.socket, whole, body, self.seconds, headers)

    def call(self, method: str, **arguments: Any) -> PluginReply:
        """The answer to a call; without arguments there is no body."""
        return self.raw(method, json.dumps(arguments).encode() if arguments else None)

    def succeed(self, method: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a call that must succeed. Raises: CheckFailed."""
        reply = self.call(method, **arguments)
        shown = json.dumps(arguments)[:200]
        require(reply.is_success, f"{method} {shown} must succeed; the answer is {reply}")
        document = reply.document
        require(isinstance(document, dict), f"{method} {shown} must be answered with a JSON object; it is {reply}")
        return dict(document)

    def fail(self, method: str, **arguments: Any) -> PluginReply:
        """The answer to a call that must fail. Raises: CheckFailed."""
        reply = self.call(method, **arguments)
        shown = json.dumps(arguments)[:200]
        require(not reply.is_success, f"{method} {shown} must fail; the answer is {reply}")
        require(
            reply.status != 200,
            f"{method} {shown} must fail with a status other than 200, because podman takes 200 for a success; "
            f"the answer is {reply}",
        )
        require(reply.error, f"{method} {shown} must fail with a reason in Err; the answer is {reply}")
        return reply
