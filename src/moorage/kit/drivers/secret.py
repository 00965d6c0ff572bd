"""Secret providers: ``docker.secretprovider/1.0``, called by Swarm's managers.

Source: swarmkit's manager/drivers/secrets.go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from moorage.kit.driver import Driver, DriverCall, Eventually

__all__ = ("Secret", "SecretDriver", "SecretRequest")


@dataclass(frozen=True)
class SecretRequest:
    """Which secret, and the task that needs it."""

    secret_name: str
    secret_labels: dict[str, str] = field(default_factory=dict)
    service_name: str = ""
    service_id: str = ""
    service_hostname: str = ""
    service_labels: dict[str, str] = field(default_factory=dict)
    task_id: str = ""
    task_name: str = ""
    task_image: str = ""
    service_endpoint_spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Secret:
    """The value of a secret."""

    value: bytes
    do_not_reuse: bool = False
    """Whether another task has to request it again."""


class SecretDriver(Driver):
    """A secret provider."""

    kind: ClassVar[str] = "secretprovider"
    prefix: ClassVar[str] = "SecretProvider"
    calls: ClassVar[Mapping[str, DriverCall]] = {"GetSecret": DriverCall("get_secret", SecretRequest)}

    def get_secret(self, request: SecretRequest) -> Eventually[Secret]:
        """The value of a secret."""
        raise NotImplementedError
