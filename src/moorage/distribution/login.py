"""Whether a registry accepts credentials, as ``docker login`` wants to know it before it stores them.

Source: moby's ``registry`` service (Auth, loginV2): which server an address means, and that its ``/v2/`` decides.
"""

from moorage import errors
from moorage.distribution._conversation import Conversation, RegistryRequest
from moorage.distribution._http import Transport
from moorage.distribution.auth import Credentials
from moorage.distribution.hosts import Hosts, Options
from moorage.plugins import parse_reference
from moorage.plugins.reference import DEFAULT_HOST
from moorage.timeouts import DEFAULT, Timeouts

__all__ = ("log_in", "registry_of")


async def log_in(address: str, credentials: Credentials, *, options: Options, timeouts: Timeouts = DEFAULT) -> str:
    """An identity token that may be stored in place of the password; "" where the registry has none.

    Raises: Unauthorized where the registry or its token server refuses the credentials; Invalid for an address that
    names no registry; what else the registry says, by kind; Unavailable.
    """
    host = registry_of(address)
    hosts = Hosts(options, timeouts=timeouts)
    endpoint = (await hosts.endpoints(host, is_pull=False))[-1]
    async with Transport(hosts, timeouts) as transport:
        conversation = Conversation(endpoint, "", transport, hosts, credentials, timeouts, is_login=True)
        request = RegistryRequest("GET", "", f"log in to {host}", frozenset())
        (await conversation.send(request)).close()
    return conversation.authorizer.identity_token


def registry_of(address: str) -> str:
    """The host of the registry that an address means: a host, or a URL of which only the host counts; "": docker.io.

    Raises: Invalid.
    """
    host = address.partition("://")[2] if address.startswith(("https://", "http://")) else address
    host = host.partition("/")[0] or DEFAULT_HOST
    is_bare = host != "localhost" and not any(each in host for each in ".:")  # in a reference it would be no host
    try:
        found = parse_reference(f"{host}:443/name" if is_bare else f"{host}/name").host
        return host if is_bare else found
    except errors.Invalid as error:
        raise errors.Invalid(f"cannot log in to {address}: it is not the address of a registry") from error
