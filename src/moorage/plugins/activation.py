"""Whether a plugin's answer to ``Plugin.Activate`` says what its config says."""

from collections.abc import Sequence

__all__ = ("find_mismatch",)


def find_mismatch(types: Sequence[str], implements: Sequence[object] | None) -> str:
    """What is wrong between the types of a config (``docker.volumedriver/1.0``) and an answer; "" where nothing is.

    Letter case does not count, and nothing is said of an answer that names nothing. Source: docker's plugin protocol,
    in which the answer says ``VolumeDriver`` where the config says ``volumedriver``.
    """
    named = [each for each in implements or () if isinstance(each, str)]
    capabilities = [text.partition("/")[0].rpartition(".")[2] for text in types]
    answered = {each.lower() for each in named}
    missing = [each for each in capabilities if each and each.lower() not in answered]
    if not named or not missing:
        return ""
    return (
        f"its config says {', '.join(missing)}, but its answer to Plugin.Activate says {', '.join(named)}; "
        "programs that use it go by the answer"
    )
