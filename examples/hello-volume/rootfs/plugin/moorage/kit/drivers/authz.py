"""Authorization drivers: ``docker.authz/1.0``, called for each request to dockerd and each answer of it.

Source: moby's pkg/authorization. Bodies are only sent for application/json, and up to 4 MiB.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from moorage.kit.driver import Driver, DriverCall, Eventually, log

__all__ = ("ALLOWED", "AuthorizationRequest", "AuthzDriver", "Decision", "deny")


@dataclass(frozen=True)
class AuthorizationRequest:
    """A request to dockerd, and for ``check_response`` also its answer."""

    request_method: str = ""
    request_uri: str = ""
    """With its query, as it was sent: ``/v1.41/containers/create?name=a``."""
    user: str = ""
    """Name in the client's certificate; empty without one."""
    user_authn_method: str = field(default="", metadata={"json": "UserAuthNMethod"})
    request_body: bytes = b""
    request_headers: dict[str, str] = field(default_factory=dict)
    request_peer_certificates: tuple[str, ...] = ()
    """PEM."""
    response_status_code: int = 0
    response_body: bytes = b""
    response_headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """Whether dockerd continues."""

    allow: bool
    msg: str = ""
    """Shown to the client when it does not."""
    err: str = ""
    """An error of the driver; dockerd does not continue then."""


ALLOWED = Decision(allow=True)


def deny(reason: str) -> Decision:
    """A refusal, with the reason that the client gets."""
    return Decision(allow=False, msg=reason)


class AuthzDriver(Driver):
    """An authorization driver. What it fails to decide is denied."""

    kind: ClassVar[str] = "authz"
    prefix: ClassVar[str] = "AuthZPlugin"
    calls: ClassVar[Mapping[str, DriverCall]] = {
        "AuthZReq": DriverCall("check_request", AuthorizationRequest),
        "AuthZRes": DriverCall("check_response", AuthorizationRequest),
    }

    def check_request(self, request: AuthorizationRequest) -> Eventually[Decision]:
        """Whether dockerd does what a client requests."""
        raise NotImplementedError

    def check_response(self, request: AuthorizationRequest) -> Eventually[Decision]:
        """Whether a client gets what dockerd answers."""
        return ALLOWED

    def failure(self, text: str) -> dict[str, object]:
        """A refusal: what cannot be decided is not allowed."""
        log(f"denied, because the driver failed: {text}")
        return {"Allow": False, "Msg": "", "Err": text}
