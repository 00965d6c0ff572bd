"""Verifies credentials with a registry, as ``docker login`` does before it stores them.

Source: moby's ``registry`` service (Auth, loginV2): which server an address means, and that its ``/v2/`` decides.
"""

from moorage import errors
from moorage.oci.reference import DEFAULT_HOST, parse_reference
from moorage.registry._session import RegistryRequest, RegistrySession
from moorage.registry._transport import Transport
from moorage.registry.credentials import Credentials
from moorage.registry.hosts import Hosts, Options
from moorage.timeouts import DEFAULT, RegistryTimeouts

__all__ = ("log_in", "registry_of")


async def log_in(
    address: str, credentials: Credentials, *, options: Options, timeouts: RegistryTimeouts = DEFAULT
) -> str:
    """An identity token to store instead of the password; "" if the registry issues none.

    Raises: Unauthorized if the registry or its token server refuses the credentials.
    Raises: Invalid for an address that names no registry.
    Raises: Unavailable if the registry cannot be reached; other kinds as the registry answers.
    """
    host = registry_of(address)
    hosts = Hosts(options, timeouts=timeouts)
    endpoint = (await hosts.endpoints(host, is_pull=False))[-1]
    async with Transport(hosts, timeouts) as transport:
        session = RegistrySession(endpoint, "", transport, hosts, credentials, timeouts, is_login=True)
        request = RegistryRequest("GET", "", f"log in to {host}", frozenset())
        (await session.send(request)).close()
    return session.authorizer.identity_token


def registry_of(address: str) -> str:
    """The host of the registry that an address means: a host, or a URL of which only the host counts; "": docker.io.

    Raises: Invalid.
    """
    host = address.partition("://")[2] if address.startswith(("https://", "http://")) else address
    host = host.partition("/")[0] or DEFAULT_HOST
    is_bare = host != "localhost" and not any(each in host for each in ".:")  # in a reference it would not be a host
    try:
        found = parse_reference(f"{host}:443/name" if is_bare else f"{host}/name").host
        return host if is_bare else found
    except errors.Invalid as error:
        raise errors.Invalid(f"cannot log in to {address}: it is not the address of a registry") from error
