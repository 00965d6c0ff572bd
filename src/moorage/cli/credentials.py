"""What a user's ``docker login`` stores for a registry, as the engine takes it."""

from functools import cache

from moorage.cli.terminal import warn

__all__ = ("registry_auth",)


def registry_auth(reference: str) -> str:
    """The X-Registry-Auth for the repository of this reference; "" for none.

    Credentials that are configured and cannot be found are reported on standard error, and the command goes on without
    them: a registry may not want any. Raises: Invalid for what is no reference.
    """
    import os

    import anyio

    from moorage.distribution.auth import encode_registry_auth
    from moorage.distribution.docker_config import DockerConfig, docker_config_path
    from moorage.plugins import parse_reference

    parsed = parse_reference(reference)
    credentials = anyio.run(DockerConfig(docker_config_path(), environ=os.environ), parsed.host, parsed.path)
    if credentials.absence:
        _warn(f"{credentials.absence}; going on without credentials for {parsed.host}")
    return encode_registry_auth(credentials)


@cache
def _warn(text: str) -> None:
    """Once for a command that needs the same credentials several times."""
    warn(text)
