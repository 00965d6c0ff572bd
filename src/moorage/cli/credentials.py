"""What a user's ``docker login`` keeps for a registry, as the engine wants it."""

__all__ = ("registry_auth",)


def registry_auth(reference: str) -> str:
    """The X-Registry-Auth for the registry of this reference.

    Raises: Invalid for what is no reference, or a ``config.json`` that cannot be understood; what a helper says.
    """
    import anyio

    from moorage.distribution.auth import encode_registry_auth
    from moorage.distribution.docker_config import DockerConfig, docker_config_path
    from moorage.plugins import parse_reference

    host = parse_reference(reference).host
    return encode_registry_auth(anyio.run(DockerConfig(docker_config_path()), host))
