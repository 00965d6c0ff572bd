"""The ids that containerd accepts. Pure."""

import re

from moorage import errors

__all__ = ("check_identifier",)

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_IDENTIFIER_LIMIT = 76


def check_identifier(text: str, what: str = "id") -> str:
    """The text itself, if containerd accepts it as the id of a container or a namespace; ``what`` is for the error.

    Raises:
        errors.Invalid: it is not 1 to 76 letters and digits with single ``.``, ``_`` or ``-`` between them
    Source: containerd ``identifiers.Validate``.
    """
    if len(text) > _IDENTIFIER_LIMIT or not _IDENTIFIER.fullmatch(text):
        raise errors.Invalid(
            f"cannot use {text!r} as {what}: it must have 1 to {_IDENTIFIER_LIMIT} letters and digits, "
            "with single '.', '_' or '-' between them"
        )
    return text
