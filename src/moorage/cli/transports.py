"""Names of images as skopeo and podman write them, ``docker://REFERENCE``, which are no references here."""

from moorage import errors

__all__ = ("check_reference",)

_FILES = ("oci-archive", "oci", "dir")
_ELSEWHERE = {
    "docker-archive": "an archive of docker save; turn it into an OCI archive with: "
    "skopeo copy docker-archive:{rest} oci-archive:image.tar",
    "docker-daemon": "an image of the Docker daemon; copy it into a file with: "
    "skopeo copy docker-daemon:{rest} oci-archive:image.tar",
    "containers-storage": "an image of podman; copy it into a file with: "
    "skopeo copy containers-storage:{rest} oci-archive:image.tar",
}


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
