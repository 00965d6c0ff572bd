"""What a user's ``docker login`` keeps for a registry, as the engine wants it."""

import base64
import json

__all__ = ("registry_auth",)


def registry_auth(reference: str) -> str:
    """The X-Registry-Auth for the registry of this reference; empty where nothing is kept for it.

    Raises: Invalid for what is no reference, or a ``config.json`` that cannot be understood; what a helper says.
    """
    import anyio

    from moorage.distribution.docker_config import DockerConfig, docker_config_path
    from moorage.plugins import parse_reference

    found = anyio.run(DockerConfig(docker_config_path()), parse_reference(reference).host)
    if found.is_anonymous:
        return ""
    fields = {
        "username": found.username,
        "password": found.password,
        "identitytoken": found.identity_token,
        "registrytoken": found.registry_token,
    }
    return base64.urlsafe_b64encode(json.dumps({key: each for key, each in fields.items() if each}).encode()).decode()
