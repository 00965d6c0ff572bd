"""Whether a plugin's answer to ``Plugin.Activate`` says what its config says."""

from collections.abc import Sequence

__all__ = ("find_mismatch",)

_KNOWN = frozenset(
    ("authz", "graphdriver", "ipamdriver", "logdriver", "metricscollector", "networkdriver", "volumedriver")
)
"""Capabilities whose names in an answer are defined, by Docker."""


def find_mismatch(types: Sequence[str], implements: Sequence[object] | None) -> str:
    """How the types of a config (``docker.volumedriver/1.0``) differ from an answer; "" if they agree.

    Letter case does not count; nothing is said of other capabilities, and of an answer that names nothing.
    Source: docker's plugin protocol, in which the answer says ``VolumeDriver`` where the config says ``volumedriver``.
    """
    named = [each for each in implements or () if isinstance(each, str)]
    capabilities = [text.partition("/")[0].rpartition(".")[2] for text in types]
    answered = {each.lower() for each in named}
    missing = [each for each in capabilities if each.lower() in _KNOWN - answered]
    if not named or not missing:
        return ""
    return (
        f"its config says {', '.join(missing)}, but its answer to Plugin.Activate says {', '.join(named)}; "
        "programs that use it go by the answer"
    )
