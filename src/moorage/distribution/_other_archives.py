"""What an archive is that is no OCI layout, by the names in it, and what to do with it. Pure."""

from collections.abc import Set

__all__ = ("explain_other",)

_ROOT = frozenset({".dockerenv", "bin", "dev", "etc", "lib", "proc", "sbin", "sys", "usr", "var"})
_IMAGE_ID = 64  # digits of the directories in an archive of an old docker save


def explain_other(names: Set[str]) -> str:
    """The end of an error, for the first parts of the names in an archive; empty where nothing is known of it."""
    if {"manifest.json", "repositories"} & names or any(_is_image_id(each) for each in names):
        return (
            "; it is an archive of docker save: turn it into one with "
            "skopeo copy docker-archive:FILE oci-archive:image.tar, and give that"
        )
    if {"config.json", "rootfs"} <= names:
        return "; it is a plugin's package: unpack it, and create the plugin of that directory, without --from"
    if _ROOT & names:
        return (
            "; it is a root file system, as docker export writes it: unpack it into DIRECTORY/rootfs, "
            "beside a config.json, and create the plugin of DIRECTORY, without --from"
        )
    return ""


def _is_image_id(name: str) -> bool:
    return len(name) == _IMAGE_ID and not set(name) - set("0123456789abcdef")
