"""The HTTP client of registries: manifests and blobs of one repository, credentials, mirrors and trust.

    async with registry.Registry(registry.parse_reference("docker.io/library/alpine:3")) as repository:
        print(await repository.resolve(reference))

It needs the extra ``registry``. Names, imported when they are first used:

    Credentials: A user name with a secret of any kind.
    CredentialsFor: A function that finds the credentials for a registry's host.
    Options: The options of a machine's administrator about registries.
    Reference: An image or a plugin in a registry.
    Registry: A repository during one operation, a pull or a push.
    credentials_for: Credentials for one host, none for any other.
    log_in: Verify credentials with a registry, as ``docker login`` does.
    parse_reference: Read a reference as docker reads it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moorage.oci.reference import Reference as Reference
    from moorage.oci.reference import parse_reference as parse_reference
    from moorage.registry.credentials import Credentials as Credentials
    from moorage.registry.credentials import CredentialsFor as CredentialsFor
    from moorage.registry.credentials import credentials_for as credentials_for
    from moorage.registry.hosts import Options as Options
    from moorage.registry.login import log_in as log_in
    from moorage.registry.registry import Registry as Registry

__all__ = (
    "Credentials",
    "CredentialsFor",
    "Options",
    "Reference",
    "Registry",
    "credentials_for",
    "log_in",
    "parse_reference",
)

_MODULES = {
    "Credentials": "moorage.registry.credentials",
    "CredentialsFor": "moorage.registry.credentials",
    "Options": "moorage.registry.hosts",
    "Reference": "moorage.oci.reference",
    "Registry": "moorage.registry.registry",
    "credentials_for": "moorage.registry.credentials",
    "log_in": "moorage.registry.login",
    "parse_reference": "moorage.oci.reference",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
