"""References to packages as users write them, and the credentials that ``docker login`` stored for them."""

from functools import cache

from moorage import errors
from moorage.cli.terminal import warn

__all__ = ("check_reference", "names_registry", "registry_auth")

_FILES = ("oci-archive", "oci", "dir")
_ELSEWHERE = {
    "docker-archive": "an archive of docker save; turn it into an OCI archive with: "
    "skopeo copy docker-archive:{rest} oci-archive:image.tar",
    "docker-daemon": "an image of the Docker daemon; copy it into a file with: "
    "skopeo copy docker-daemon:{rest} oci-archive:image.tar",
    "containers-storage": "an image of podman; copy it into a file with: "
    "skopeo copy containers-storage:{rest} oci-archive:image.tar",
}


def registry_auth(reference: str) -> str:
    """The X-Registry-Auth for the repository of this reference; "" for none.

    Credentials that are configured and cannot be found are reported on standard error, and the command continues
    without them: a registry may not require any. Raises: Invalid for what is no reference.
    """
    import os

    import anyio

    from moorage.plugins import parse_reference
    from moorage.registry.credentials import encode_registry_auth
    from moorage.registry.docker_config import DockerConfig, docker_config_path

    parsed = parse_reference(reference)
    credentials = anyio.run(DockerConfig(docker_config_path(), environ=os.environ), parsed.host, parsed.path)
    if credentials.reason_absent:
        _warn(f"{credentials.reason_absent}; continuing without credentials for {parsed.host}")
    return encode_registry_auth(credentials)


@cache
def _warn(text: str) -> None:
    """Once for a command that needs the same credentials several times."""
    warn(text)


def names_registry(reference: str) -> bool:
    """Whether the reference of a plugin names a registry; that of one that was created here under a short name does
    not.
    """
    host, slash, _ = reference.partition("/")
    return bool(slash) and (host == "localhost" or any(each in host for each in ".:"))


def check_reference(text: str) -> None:
    """Return if a text does not begin with the name of a transport. Raises: Invalid saying what to write instead."""
    kind, colon, rest = text.partition(":")
    if not colon:
        return
    if kind in ("docker", "https", "http") and rest.startswith("//"):
        plain = rest.strip("/")
        raise errors.Invalid(f"cannot use {text}: a reference has no {kind}:// before it; give {plain}")
    if kind in _FILES and rest.startswith(("/", ".")):
        path = rest.partition(":")[0]
        raise errors.Invalid(f"cannot use {text}: give the path of the OCI layout alone: {path}")
    if kind in _ELSEWHERE and rest:
        raise errors.Invalid(f"cannot use {text}: it is {_ELSEWHERE[kind].format(rest=rest)}")
