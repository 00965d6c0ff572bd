"""Labels of a plugin: texts of its users by key, which Moorage shows and filters by, and does not interpret."""

from collections.abc import Mapping

from moorage import errors

__all__ = ("check_labels", "has_label")

_KEY_LIMIT, _VALUE_LIMIT, _COUNT_LIMIT = 256, 4096, 100


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises: Invalid for labels that no plugin can have."""
    if len(labels) > _COUNT_LIMIT:
        raise errors.Invalid(f"cannot have {len(labels)} labels: at most {_COUNT_LIMIT} are possible")
    for key, value in labels.items():
        if not 0 < len(key) <= _KEY_LIMIT or "=" in key or not key.isprintable() or " " in key:
            raise errors.Invalid(
                f"cannot have the label {key[:_KEY_LIMIT]!r}: a key has 1 to {_KEY_LIMIT} characters, without spaces, "
                "control characters and ="
            )
        if len(value) > _VALUE_LIMIT or "\0" in value:
            raise errors.Invalid(
                f"cannot have the label {key}: a value has at most {_VALUE_LIMIT} characters, and no NUL"
            )


def has_label(labels: Mapping[str, str], text: str) -> bool:
    """Whether there is a label KEY, or KEY=VALUE, as docker's filters have it."""
    key, equals, value = text.partition("=")
    return key in labels and (not equals or labels[key] == value)
